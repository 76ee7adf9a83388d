"""Test the bar that shows how far a slow part of a command is."""

import io
import sys
from contextlib import redirect_stderr

import pytest

from helpers.commands import TINY
from vrnn_lab import predict, run
from vrnn_lab.cli import progress
from vrnn_lab.cli.progress import only_bar, tracked


class Screen(io.StringIO):
    """Stand in for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch) -> Screen:
    """Return a terminal; bars appear at once."""
    monkeypatch.setattr(progress, "AFTER", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return Screen()


def test_a_bar_counts_what_the_items_hold(screen):
    with redirect_stderr(screen):
        assert list(tracked(["ab", "c", "def"], "reading letters", 6, len)) == ["ab", "c", "def"]
        assert "reading letters" in screen.getvalue() and "6/6" in screen.getvalue()


def test_a_total_is_asked_for_only_where_a_bar_is_shown(screen, monkeypatch):
    with redirect_stderr(screen):
        asked = []
        assert list(tracked([1, 2], "counting", lambda: asked.append(1) or 2)) == [1, 2]
        assert asked == [1]
        monkeypatch.setattr(progress, "AFTER", 1e9)
        assert list(tracked([1, 2], "quick work", lambda: asked.append(1) or 2)) == [1, 2]
        assert asked == [1] and "quick work" not in screen.getvalue()


def test_one_bar_at_a_time(screen):
    with redirect_stderr(screen):
        for _ in tracked([1], "outer", 1):
            assert list(tracked([1, 2], "inner", 2)) == [1, 2]
        with only_bar("training"):
            list(tracked([1], "validation", 1))
        list(tracked([1], "afterwards", 1))
        shown = screen.getvalue()
        assert "outer" in shown and "afterwards" in shown and "inner" not in shown and "validation" not in shown


def test_a_bar_goes_away_with_an_error_or_an_early_end(screen):
    with redirect_stderr(screen):
        with pytest.raises(RuntimeError, match="in the middle"):
            for _ in tracked([1, 2], "failing", 2):
                raise RuntimeError("in the middle")
        items = tracked(iter([1, 2]), "unfinished", 2)
        next(items)
        items.close()
        assert progress._bars == []


def test_no_bar_in_a_file_or_where_it_is_to_be_quiet(screen, monkeypatch):
    with redirect_stderr(screen):
        monkeypatch.setenv("VRNN_LAB_FLAGS", "--quiet")
        list(tracked([1], "quiet", 1))
        assert screen.getvalue() == ""
        monkeypatch.delenv("VRNN_LAB_FLAGS")
    with redirect_stderr(io.StringIO()) as file:
        list(tracked([1], "in a file", 1))
    assert file.getvalue() == ""


def test_predictions_show_how_many_series_are_done(screen, tmp_path, monkeypatch):
    with redirect_stderr(screen):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["predict", "run=example", "input=example", "horizon=2w", "output=a.csv"])
        assert predict.main() == 0
        assert "predicting series" in screen.getvalue() and "1/1" in screen.getvalue()


@pytest.mark.slow
def test_scores_and_figures_of_a_run_show_how_far_they_are(screen, tmp_path, monkeypatch):
    with redirect_stderr(screen):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["run", *TINY])
        assert run.main() == 0
        shown = screen.getvalue()
        assert all(part in shown for part in ("scoring the test split", "scoring the baseline", "drawing figures"))
