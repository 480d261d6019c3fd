"""StopBuffer: text cut at stop strings, however the text is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from tinylm.inference.stopping import StopBuffer

letters = st.text(alphabet="abc", max_size=30)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4)


def whole(text: str, stop: list[str], include: bool) -> str:
    """The definition, on the whole text: cut at the stop string that ends first, of those at the first in `stop`."""
    found = [(text.find(x) + len(x), stop.index(x), x) for x in stop if x in text]
    if not found:
        return text
    end, _, x = min(found)
    return text[: end if include else end - len(x)]


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@given(letters, stops, st.lists(st.integers(0, 4), max_size=20), st.booleans())
def test_the_result_does_not_depend_on_the_pieces(text: str, stop: list[str], sizes: list[int], include: bool) -> None:
    buffer = StopBuffer(stop, include)
    shown = ""
    for piece in cut(text, sizes):
        shown += buffer.push(piece)
        if buffer.stopped_by is not None:
            break
        assert not include or not any(x in shown for x in stop)
    shown += buffer.flush()
    assert shown == whole(text, stop, include)
    assert (buffer.stopped_by is not None) == any(x in text for x in stop)


@given(letters, stops, letters)
def test_what_was_shown_is_never_taken_back(text: str, stop: list[str], rest: str) -> None:
    """What was shown after `text` is the beginning of the final text, whatever `rest` comes next."""
    buffer = StopBuffer(stop)
    shown = buffer.push(text)
    assert whole(text + rest, stop, False).startswith(shown)


def test_of_two_that_end_together_the_first_in_the_list_counts() -> None:
    for stop, expected in ((["end", "the end"], "at the "), (["the end", "end"], "at ")):
        buffer = StopBuffer(stop)
        assert "".join(map(buffer.push, "at the end")) == expected
        assert buffer.stopped_by == stop[0]


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    buffer = StopBuffer(["\n\nUser:"])
    assert buffer.push("Hello") == "Hello"
    assert buffer.push("\n") == ""
    assert buffer.push("you\n\nUs") == "\nyou"
    assert buffer.push("e") == ""
    assert buffer.push("ful") == "\n\nUseful"
    assert buffer.push("\n\nUser: no") == ""
    assert buffer.stopped_by == "\n\nUser:"


def test_without_checking_a_stop_string_is_text_but_its_beginning_still_counts() -> None:
    buffer = StopBuffer(["END"])
    assert buffer.push("END", check=False) == "END"
    assert buffer.push("EN", check=False) == ""
    assert buffer.push("D") == ""
    assert buffer.stopped_by == "END"


def test_ten_thousand_stop_strings() -> None:
    buffer = StopBuffer([f"stop number {i}!" for i in range(10_000)])
    shown = ""
    for character in "please, stop number 77, then stop number 4321! and more":
        shown += buffer.push(character)
        if buffer.stopped_by is not None:
            break
    assert shown == "please, stop number 77, then "
    assert buffer.stopped_by == "stop number 4321!"
