from __future__ import annotations

import pytest

from manager.pools_file.positions import Path, Positions

TEXT = '''\
# pools
server = "x"

search = [
  "a",  # [pools]
  "b",
]
note = """
[defaults]
cpus = 1
"""
a.b."c d" = 1
inline = { one = 1, two = { three = 3 } }
[defaults]
cpus = 2
[[pools]]
name = "one"
  [pools.sub]
  deep = true
[[ pools ]]

  name = 'two'
[["quoted key".list]]
x = 1
'''

LINES: list[tuple[Path, int]] = [
    (("server",), 2),
    (("search",), 4),
    (("search", 1), 4),
    (("note",), 8),
    (("a",), 12),
    (("a", "b", "c d"), 12),
    (("inline", "two", "three"), 13),
    (("defaults",), 14),
    (("defaults", "cpus"), 15),
    (("pools",), 16),
    (("pools", 0), 16),
    (("pools", 0, "name"), 17),
    (("pools", 0, "sub"), 18),
    (("pools", 0, "sub", "deep"), 19),
    (("pools", 1), 20),
    (("pools", 1, "name"), 22),
    (("pools", 1, "no such key"), 20),
    (("quoted key", "list", 0, "x"), 24),
    (("no such key",), 1),
    ((), 1),
]


@pytest.mark.parametrize(("path", "line"), LINES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_each_key_has_the_line_that_it_stands_in(path: Path, line: int, newline: str) -> None:
    assert Positions(TEXT.replace("\n", newline)).line(path) == line


def test_a_file_without_a_last_newline_is_as_long() -> None:
    assert Positions("a = 1\nb = 2").line(("b",)) == 2
