from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.parallel import PixelRoom, in_order


def test_results_come_in_order_and_errors_end_the_work() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise DatasetError("five")
        return number * 2

    assert list(in_order(work, range(5), 3)) == [0, 2, 4, 6, 8]
    with pytest.raises(DatasetError, match="five"):
        list(in_order(work, range(5, 100), 3))
    assert len(begun) < 20


def test_large_pictures_wait_for_room_and_one_too_large_goes_alone() -> None:
    room, entered, leave = PixelRoom(100), threading.Event(), threading.Event()

    def hold() -> None:
        with room.reserve(60):
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(5)
    with room.reserve(40):
        pass
    order: list[str] = []

    def large() -> None:
        with room.reserve(1000):
            order.append("large")

    waiting = threading.Thread(target=large)
    waiting.start()
    waiting.join(0.05)
    order.append("room")
    leave.set()
    thread.join(5)
    waiting.join(5)
    assert order == ["room", "large"]


def test_items_are_begun_ahead_of_their_results_and_no_further() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            begun.append(number)
            yield number

    with closing(in_order(lambda number: number, items(), 2, ahead=5)) as results:
        assert next(results) == 0
        assert begun == [0, 1, 2, 3, 4, 5]
        assert next(results) == 1
        assert begun[-1] == 6
