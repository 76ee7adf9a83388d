"""Define the annotations of parameters, which are checked when a config is passed to a constructor, and name them."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from beartype.door import is_bearable
from beartype.vale import Is

Count = Annotated[int, Is[lambda x: x >= 1]]
Natural = Annotated[int, Is[lambda x: x >= 0]]
Positive = Annotated[float, Is[lambda x: 0 < x < float("inf")]]
NonNegative = Annotated[float, Is[lambda x: 0 <= x < float("inf")]]
Share = Annotated[float, Is[lambda x: 0 <= x <= 1]]
Dropout = Annotated[float, Is[lambda x: 0 <= x < 1]]
Decay = Annotated[float, Is[lambda x: 0 < x <= 1]]
Range = Annotated[list[float] | tuple[float, ...], Is[lambda x: len(x) == 2 and 0 <= x[0] <= x[1] <= 1]]

WORDS = [
    (Count, "a whole number from 1"),
    (Natural, "a whole number from 0"),
    (Positive, "a number above 0"),
    (NonNegative, "a number from 0"),
    (Share, "a fraction between 0.0 and 1.0"),
    (Dropout, "a fraction from 0 and below 1"),
    (Decay, "a number above 0 and up to 1"),
    (Range, "two fractions [low, high]"),
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "text"),
    (NoneType, "null"),
]


def conforms(value: Any, hint: Any) -> bool:
    """Return whether a value read from YAML or a command line is valid for a parameter annotated `hint`."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, bool):  # to Python a bool is an int; here it is not valid for one
        return any(part in (bool, Any) or (get_origin(part) is Literal and value in get_args(part)) for part in parts)
    if is_bearable(value, hint):
        return True
    if isinstance(value, int):
        return is_bearable(float(value), hint)
    return isinstance(value, list) and is_bearable(tuple(value), hint)


def words(hint: Any) -> str:
    """Describe in words the values that an annotation allows, for an error message."""
    for known, text in WORDS:
        if hint is known or hint == known:
            return text
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(x) for x in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part != Count or Positive not in get_args(hint)]
        return " or ".join(dict.fromkeys(words(part) for part in parts))
    if get_origin(hint) in (list, tuple):
        return "a list, each " + words(get_args(hint)[0])
    return getattr(hint, "__name__", str(hint))
