"""Rows in another order, against indexing."""

import torch

from experts.rows import places, take_rows


def test_rows_are_those_of_indexing() -> None:
    """Of any shape of index, also an empty one."""
    table = torch.arange(12.0).view(4, 3)
    for index in (
        torch.tensor([3, 0, 3]),
        torch.tensor([[1, 2], [2, 0]]),
        torch.empty(0, 2, dtype=torch.int64),
    ):
        torch.testing.assert_close(take_rows(table, index), table[index], rtol=0, atol=0)


def test_places_undo_an_order() -> None:
    assert places(torch.tensor([2, 0, 3, 1])).tolist() == [1, 3, 0, 2]
