"""The window over which a question is asked."""

import pytest

from vrnn_lab.forecasting.context_window import choose_window

CASES = {
    "a short series is taken whole": ((3, 4, 0, 8), (0, 8)),
    "a forecast from it, too": ((9, 10, 0, 8), (0, 10)),
    "in the middle of a long one": ((50, 52, 0, 100), (46, 56)),
    "near its start": ((1, 2, 0, 100), (0, 10)),
    "near its end": ((98, 99, 0, 100), (90, 100)),
    "a forecast": ((101, 104, 0, 100), (94, 104)),
    "a forecast farther than half a window has half a one before it": ((101, 130, 0, 100), (96, 130)),
    "before the first point": ((-4, -3, 0, 100), (-4, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_question_has_a_window_as_in_training(case):
    question, window = CASES[case]
    assert choose_window(*map(float, question), longest=10.0) == window


def test_whole_series_are_asked_from_their_own_start():
    ask = lambda end: choose_window(end + 1, end + 6, 0.0, end, longest=10.0, keep_start=True)
    assert ask(9.0) == (0, 15)
    assert ask(40.0) == choose_window(41.0, 46.0, 0.0, 40.0, longest=10.0)  # longer than any of training


def test_of_moments_there_is_no_length_to_keep_to():
    assert choose_window(3.0, 4.0, 0.0, 100.0, longest=0.0) == (0, 100)
