"""Choose the window over which a model predicts: models know windows as long as those of their training."""


def choose_window(
    first: float, last: float, begin: float, end: float, longest: float, keep_start: bool = False
) -> tuple[float, float]:
    """Return the window (start, end) for queries from `first` to `last` of a series observed from `begin` to `end`.

    The window is the whole series where that is no longer than `longest`, the longest training window. Otherwise it
    has that length and lies around the queries, or before them for a forecast; where they leave less than half of it
    for context, that half is added, and the window is longer than any of training.

    keep_start: training windows begin where their series do, at a meaningful time (birth, the first dose). A series
    no longer than `longest` is then always predicted from its own start, however far ahead the queries lie.
    """
    low, high, span = min(first, begin), max(last, end), last - first
    if high - low <= longest or longest <= 0 or (keep_start and end - begin <= longest):
        return low, high
    room = max(longest - span, longest / 2)
    start = max(low, min(first - room / 2, high - span - room))
    return start, min(high, start + span + room)
