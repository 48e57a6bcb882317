from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from calibrate.contamination import ItemIndex, N, overlaps
from calibrate.duplicates import near_duplicates
from calibrate.words import words

PASSAGE = "the quick brown fox jumps over the lazy dog and then it sleeps all day"


def talk(question: str, answer: str = "fine", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


def index_of(*records: dict[str, Any]) -> ItemIndex:
    return ItemIndex((f"t: {n}", record) for n, record in enumerate(records))


def test_words_are_the_same_however_they_are_written() -> None:
    assert words("Größe, ＡＢＣ! it's") == ["grösse", "abc", "it", "s"]
    assert words("你好 world") == ["你", "好", "world"]


def test_the_same_question_is_found_whatever_its_spelling() -> None:
    tests = index_of(talk("What is the capital of Peru?", "Lima"))
    found = overlaps([talk("something else"), talk("what is  the CAPITAL of peru", "I don't know")], tests)
    assert [(o.record, o.item, o.how) for o in found] == [(1, "t: 0", "question")]


def test_thirteen_words_in_a_row_are_found_twelve_are_not() -> None:
    said = PASSAGE.split()
    tests = index_of(talk("Translate: " + PASSAGE))
    thirteen, twelve = " ".join(said[:N]), " ".join(said[: N - 1])
    found = overlaps([talk("Repeat " + twelve), talk("Repeat", f"He said: {thirteen}; then")], tests)
    assert [(o.record, o.how, o.text) for o in found] == [(1, "13 words", thirteen)]


def test_a_shared_system_prompt_and_shared_tools_are_no_overlap() -> None:
    system = {"role": "system", "content": PASSAGE}
    tools = [{"type": "function", "function": {"name": "f", "description": PASSAGE, "parameters": {}}}]
    one, other = talk("first question", tools=tools), talk("second question", tools=tools)
    for record in (one, other):
        record["messages"].insert(0, system)
    assert overlaps([one], index_of(other)) == []


def test_what_stands_everywhere_on_both_sides_is_a_template() -> None:
    tests = index_of(*[talk(f"{PASSAGE}: {n}") for n in range(10)])
    everywhere = [talk(f"{PASSAGE}: number {n}") for n in range(10)]
    assert overlaps(everywhere, tests) == []
    # On one side only it is not: a test passage that three conversations have is known to the set three times.
    alone = index_of(talk(f"Read this: {PASSAGE}"), *[talk(f"question {n}") for n in range(9)])
    assert len(overlaps(everywhere, alone)) == 10
    # A question that is the same word for word is never a template.
    assert [o.how for o in overlaps([*everywhere, talk(f"{PASSAGE}: 3")], tests)] == ["question"]


@given(st.lists(st.sampled_from("a b c d e".split()), min_size=N, max_size=40), st.integers(0, 30))
def test_a_copied_stretch_is_always_found(text: list[str], start: int) -> None:
    start = min(start, len(text) - N)
    copied = " ".join(text[start : start + N])
    found = overlaps([talk("x " + copied + " y")], index_of(talk("z " + " ".join(text))))
    assert [o.record for o in found] == [0]


def test_near_duplicates_go_and_the_first_stays() -> None:
    long = " ".join(f"word{n}" for n in range(60))
    records = [talk(long), talk("another thing entirely " * 3), talk(long + " once more"), talk(long.upper())]
    assert near_duplicates(records, 0.9) == [2, 3]
    assert near_duplicates(records, 1.0) == [3], "at 1 only what has the very same words"


def test_near_duplicates_look_at_calls_but_not_at_schemas() -> None:
    def calling(name: str, value: int) -> dict[str, Any]:
        call = {"function": {"name": name, "arguments": {"value": value}}}
        tools = [{"function": {"name": n, "description": PASSAGE * 5}} for n in ("f", "g")]
        return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}], "tools": tools}

    assert near_duplicates([calling("f", 1), calling("g", 1), calling("f", 2), calling("f", 1)], 0.9) == [3]
