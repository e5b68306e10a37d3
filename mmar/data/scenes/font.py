"""Characters of 5 x 7 units, one bit each.

Own bits rather than a font file: those of a system differ from machine to machine, and at 32 pixels hinting decides whether a
character can be read. Characters that look alike at this size (B 8, D O Q 0, I 1, S 5, Z 2) are left out.
"""

from __future__ import annotations

import numpy as np

WIDTH, HEIGHT = 5, 7

_ROWS = {
    "0": ".###. #...# #..## #.#.# ##..# #...# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": "####. ....# ....# .###. ....# ....# ####.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": "..##. .#... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. ..#.. .#... .#...",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ...#. .##..",
    "A": "..#.. .#.#. #...# #...# ##### #...# #...#",
    "C": ".###. #...# #.... #.... #.... #...# .###.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
}
CHARACTERS = tuple(_ROWS)


def bitmap(character: str) -> np.ndarray:
    """``(7, 5)`` bool, True where there is ink.

    Raises:
        ValueError: If the character is not among :data:`CHARACTERS`.
    """
    if character not in _ROWS:
        raise ValueError(f"character must be one of {''.join(CHARACTERS)}, got {character!r}")
    return np.array([[bit == "#" for bit in row] for row in _ROWS[character].split()])
