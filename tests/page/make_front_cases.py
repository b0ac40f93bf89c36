"""Writes front_cases.json: what the front and the knee of some points are, found by following their definitions literally.

`python tests/page/make_front_cases.py`. Both slimsweep/report/pareto.py and slimsweep/report/web/front.js must agree with it.
"""

import json
import random
from fractions import Fraction
from pathlib import Path

Point = tuple[float | None, float | None]


def front_of(points: list[Point], more_x: bool, more_y: bool) -> list[int]:
    """The places of the points that no other dominates, cheapest first, of equal ones the first first."""
    known = [i for i, (x, y) in enumerate(points) if x is not None and y is not None]
    signed = {i: (-points[i][0] if more_x else points[i][0], points[i][1] if more_y else -points[i][1]) for i in known}

    def dominated(i: int) -> bool:
        return any(
            signed[j][0] <= signed[i][0] and signed[j][1] >= signed[i][1] and signed[j] != signed[i] for j in known if j != i
        )

    return sorted((i for i in known if not dominated(i)), key=lambda i: (signed[i][0], i))


def knee_of(points: list[Point], front: list[int]) -> int | None:
    """The place of the point farthest above the line between the front's ends, in exact arithmetic; of equals the first."""
    if len(front) < 3:
        return None
    at = {i: (Fraction(points[i][0]), Fraction(points[i][1])) for i in front}
    (x0, y0), (x1, y1) = at[front[0]], at[front[-1]]
    if x0 == x1 or y0 == y1:
        return None
    above = {i: (at[i][1] - y0) / (y1 - y0) - (at[i][0] - x0) / (x1 - x0) for i in front}
    highest = max(front, key=lambda i: above[i])
    return highest if above[highest] > 0 else None


def clear(points: list[Point], front: list[int], knee: int | None) -> bool:
    """Whether rounding cannot change the knee: it is a point well above all others that differ from it, and above the line."""
    if knee is None:
        return True
    at = {i: (float(points[i][0]), float(points[i][1])) for i in front}
    (x0, y0), (x1, y1) = at[front[0]], at[front[-1]]
    above = {i: (at[i][1] - y0) / (y1 - y0) - (at[i][0] - x0) / (x1 - x0) for i in front}
    return above[knee] > 1e-6 and all(above[knee] - above[i] > 1e-6 or at[i] == at[knee] for i in front)


def cases() -> list[dict[str, object]]:
    """Written-out cases first, then drawn ones: few different values, so that there are many ties, and real ones."""
    draw = random.Random(0)
    written: list[list[Point]] = [
        [],
        [(1, 1)],
        [(1, 1), (2, 2)],
        [(1, 1), (2, 2), (3, 3)],  # straight: no knee
        [(1, 1), (2, 1.5), (3, 3)],  # hollow: no knee
        [(1, 60), (2, 90), (3, 91), (4, 92)],
        [(2, 5), (2, 5), (1, 1), (3, 6), (2, 5)],  # equal points all stay
        [(1, 5), (1, 6), (2, 6), (3, 6)],  # one column equal
        [(None, 99), (1, None), (2, 3), (None, None)],
        [(1.74e6, 96.94), (2.43e6, 97.5), (3.5e6, 97.22), (1.22e6, 97.22), (0.87e6, 97.5), (0.52e6, 96.94)],
    ]
    found = []
    for points in written:
        found += [(points, more_x, more_y) for more_x in (False, True) for more_y in (False, True)]
    while len(found) < 160:
        size = draw.randint(0, 14)
        if draw.random() < 0.5:
            points = [(draw.randint(0, 8), draw.randint(0, 8)) for _ in range(size)]
        else:
            points = [(round(draw.uniform(1e6, 5e9), 2), round(draw.uniform(60, 90), 4)) for _ in range(size)]
        points = [(None if draw.random() < 0.05 else x, None if draw.random() < 0.05 else y) for x, y in points]
        found.append((points, draw.random() < 0.5, draw.random() < 0.7))
    listed = []
    for points, more_x, more_y in found:
        front = front_of(points, more_x, more_y)
        knee = knee_of(points, front)
        if clear(points, front, knee):
            listed.append({"points": points, "more_x": more_x, "more_y": more_y, "front": front, "knee": knee})
    return listed


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case) for case in cases())
    Path(__file__).with_name("front_cases.json").write_text(f"[\n{lines}\n]\n")
