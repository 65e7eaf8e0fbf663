"""Texts and numbers that depend on data as keys, names, items and parts of other texts.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch

from gaudicc.capture.mend import export_mending
from gaudicc.errors import DynamicControlFlowError
from tests.capture.mended import VECTORS, Body, Wrap, check

CASES: dict[str, Body] = {}
REFUSED: dict[str, tuple[Body, str]] = {}
FUNCTIONS = [torch.relu, torch.tanh, torch.sigmoid, torch.abs]


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


def refused(why: str):
    def add(body: Body) -> Body:
        REFUSED[body.__name__] = body, why
        return body

    return add


def name_of(x):
    return "pos" if x.sum() > 0 else "neg"


def count_of(x):
    return int((x > 0).sum())


@case
def get_with_default(x):
    return x * {"pos": 2.0}.get(name_of(x), 5.0)


@case
def get_without_default(x):
    found = {"pos": x * 2}.get(name_of(x))
    return x if found is None else found


@case
def item(x):
    return x * {"pos": 2.0, "neg": 3.0}[name_of(x)]


@case
def item_that_is_missing(x):
    return x * {"pos": 2.0}[name_of(x)] if x.sum() > 0 else x


@case
def in_dict(x):
    return x * 2 if name_of(x) in {"pos": 1} else x


@case
def in_set(x):
    return x * 2 if name_of(x) in {"pos", "other"} else x


@case
def in_list(x):
    return x * 2 if name_of(x) not in ["pos", "other"] else x


@case
def stored(x):
    table = {"pos": x, "neg": x}
    table[name_of(x)] = x * 2
    return table["pos"], table["neg"]


@case
def stored_beside_undecided(x):
    table = {"pos": x[:1] if x[0] > 0 else x, "neg": x}
    table[name_of(x)] = x * 2
    return table["pos"].sum(), table["neg"]


@case
def added_to(x):
    table = {"pos": x, "neg": x}
    table[name_of(x)] += 1
    return table["pos"], table["neg"]


@case
def set_by_default(x):
    table = {"pos": x}
    table.setdefault(name_of(x), x + 1)
    return table["pos"], len(table)


@case
def popped(x):
    table = {"pos": x, "neg": x * 2}
    y = table.pop(name_of(x))
    return y, len(table)


@case
def deleted(x):
    table = {"pos": x, "neg": x * 2}
    del table[name_of(x)]
    return len(table), "pos" in table


@case
def place_in_list(x):
    names = ["neg", "pos", "neg"]
    return x * (names.index(name_of(x)) + 1), names.count(name_of(x))


@case
def removed(x):
    names = ["neg", "pos", "neg"]
    names.remove(name_of(x))
    return len(names), names[0] == "pos"


@case
def appended(x):
    names = []
    names.extend([name_of(x)] * 2)
    names.append("pos")
    names.insert(0, name_of(x))
    return x * (2.0 if names[1] == "pos" else 1.0), len(names)


@case
def counted(x):
    counts = Counter({"p": 0, "n": 0})
    for value in x:
        counts["p" if value > 0 else "n"] += 1
    return counts["p"], counts["n"]


@case
def attribute(x):
    return getattr(torch, "relu" if x.sum() > 0 else "tanh")(x)


@case
def has_attribute(x):
    return x if hasattr(torch, "relu" if x.sum() > 0 else "no such function") else -x


@case
def formatted(x):
    text = f"{name_of(x)}-{'ab' if x[0] > 0 else 'c':>4}!"
    return x * len(text), text == "pos-  ab!", f"{name_of(x)!r}" == "'pos'"


@case
def formatted_otherwise(x):
    return "{}!".format(name_of(x)) == "pos!", "%s!" % name_of(x) == "neg!", name_of(x) + "x" == "posx"  # noqa: UP032,UP031


@case
def joined(x):
    text = "".join("p" if value > 0 else "n" for value in x)
    return x * (1.0 + text.count("p"))


@case
def key_of_two(x):
    return x * {("pos", 1): 2.0, ("neg", 1): 3.0}[name_of(x), 1]


@case
def compared_in_tuples(x):
    pair = (name_of(x), 1)
    return pair == ("pos", 1), pair != ("pos", 1), [name_of(x)] == ["pos"]


@case
def function_of_a_table(x):
    return {"pos": torch.relu, "neg": lambda t: t * 3}[name_of(x)](x)


@case
def keys_are_bools(x):
    return x * {True: 2.0, False: 3.0}[bool(x.sum() > 0)]


@case
def keys_are_numbers(x):
    return x * {0: 2.0, 1: 3.0, 2: 4.0, 3: 5.0}[count_of(x)], x * {0: 2.0, 2: 3.0}.get(count_of(x), 7.0)


@case
def number_in_dict(x):
    return x * 2 if count_of(x) in {0: "a", 3: "b"} else x


@case
def functions_by_number(x):
    return FUNCTIONS[count_of(x)](x)


@case
def matched(x):
    match count_of(x):
        case 0:
            return x - 1
        case 1 | 2 if x[0] > 0:
            y = x * 2
        case 3:
            y = x * 3
        case _:
            y = -x
    return y + 1


@case
def matched_text(x):
    match name_of(x):
        case "pos":
            return x
        case None | "neg":
            return -x


@case
def first_of_a_generator(x):
    place = next((i for i, value in enumerate(x) if value > 0), -1)
    largest = next(value for value in x if not value > 5)
    return place, largest


@case
def nothing_to_be_first(x):
    return next(value for value in x if value > 2)


@case
def what_comes_after_the_first_is_not_looked_at(x):
    places = torch.stack([x[0] > 0, x.new_tensor(1) > 0]).long() * 5
    return next((x[2 - place] for place in places if place < 3 or x[0] > 0), x[0])


@case
def extremes_by_key(x):
    return min(range(3), key=lambda i: x[i].item()), max(x, key=lambda value: (value - 1).abs()), min([3, 1], key=abs)


@case
def bools_add_up(x):
    flags = [(value > 0).item() for value in x]
    total = 0
    for flag in flags:
        total += flag
    return total, sum(flags), flags[0] + flags[1]


@case
def first_of_a_tensor(x):
    return next((v for v in x if v > 0), x[2]) + x


@case
def largest_by_key(x):
    return max(x, key=lambda v: abs(v)) + x


@case
def bools_are_numbers(x):
    n = bool(x[0] > 0)
    return x * (n + 1) + n * 2 + (not n)


@case
def matched_number(x):
    match int(x[0]):
        case 1:
            return x
        case _:
            return -x


@refused("is the key of a dict or an element of a set")
def display(x):
    return len({name_of(x): 1, "pos": 2}) * x


@refused("a set gets different elements")
def set_that_grows(x):
    names = {"pos"}
    names.add(name_of(x))
    return x * len(names)


@refused("the order of the keys of a dict")
def keys_that_come(x):
    table = defaultdict(int)
    table[name_of(x)] += 1
    return x * table["pos"]


@refused("an index is a list of a number that data decides and a None")
def none_in_an_index(x):
    place = 0 if x.sum() > 0 else None
    y = x.clone()
    y[[count_of(x) % 2, place]] = 1
    return y


def test_a_number_that_is_no_key_raises() -> None:
    body = Wrap(lambda x: x * {0: 2.0, 1: 3.0}[count_of(x)]).eval()
    mended = export_mending(body, VECTORS[0])
    for (x,) in VECTORS:
        if count_of(x) > 1:
            with pytest.raises(KeyError):
                mended.run(x)
        else:
            assert torch.equal(mended.run(x).nan_to_num(), body(x).nan_to_num())


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    check(Wrap(CASES[name]), VECTORS)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_its_line(name: str) -> None:
    body, why = REFUSED[name]
    with pytest.raises(DynamicControlFlowError, match=why) as caught:
        export_mending(Wrap(body).eval(), VECTORS[0])
    assert "test_mend_keys.py" in str(caught.value)
