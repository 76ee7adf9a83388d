"""Over which window a question is asked of a series: models know windows as long as those of their training."""


def choose_window(
    first: float, last: float, begin: float, end: float, longest: float, keep_start: bool = False
) -> tuple[float, float]:
    """The window for questions from `first` to `last` of a series watched from `begin` to `end`.

    All of it where that is no longer than `longest`, the longest window of training. Else a stretch of that length
    about the questions, in front of them for a forecast; where they leave less than half of it, that half is added,
    and the window is longer than any of training.

    keep_start: windows of training begin where their series do, and mean something there (the birth of an animal, the
    first dose). A series no longer than they are is then asked from its own start on, however far ahead.
    """
    low, high, span = min(first, begin), max(last, end), last - first
    if high - low <= longest or longest <= 0 or (keep_start and end - begin <= longest):
        return low, high
    room = max(longest - span, longest / 2)
    start = max(low, min(first - room / 2, high - span - room))
    return start, min(high, start + span + room)
