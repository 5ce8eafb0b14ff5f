"""What an op found wrong in its input, read from the int64 words that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resque_ext.data.checks import IGNORED, IGNORED_FIX
from resque_ext.errors import ArgumentError


@dataclass(frozen=True)
class Status:
    """Faults of one call, None if there is none.

    Attributes:
        label_position: position of the first label out of range, and `label` its value.
        nonfinite_count: features (pooled, where pooling was asked) that are NaN or infinite.
        nonfinite_position: (row, column) of the first of them.
        nonfinite_rows: rows that hold one.
    """

    label_position: int | None
    label: int | None
    nonfinite_count: int
    nonfinite_position: tuple[int, int] | None
    nonfinite_rows: int

    @classmethod
    def read(cls, words: Tensor, rows: int, columns: int, first_row: int = 0) -> Status:
        """From the words of csrc/resque.h of `rows` rows, the first of which is `first_row`.

        On CUDA this waits for the device.
        """
        label_from_end, label, count, from_end, bad_rows = words.tolist()
        return cls(
            label_position=first_row + rows - label_from_end if label_from_end else None,
            label=label if label_from_end else None,
            nonfinite_count=count,
            nonfinite_position=(
                divmod((first_row + rows) * columns - from_end, columns) if from_end else None
            ),
            nonfinite_rows=bad_rows,
        )

    def raise_for_labels(self, name: str, num_classes: int, where: str = "") -> None:
        """ValueError with the first label out of range and its position."""
        if self.label_position is not None:
            raise ArgumentError(
                name,
                f"class indices 0..{num_classes - 1}",
                f"{self.label} at position {{row}}{where}",
                fix=IGNORED_FIX if self.label == IGNORED else None,
                row=self.label_position,
            )

    def raise_for_nonfinite(
        self,
        name: str,
        where: str = "",
        fix: str | None = "nonfinite='skip' leaves such rows out",
    ) -> None:
        """ValueError with the number of non-finite features and the first one's position."""
        if self.nonfinite_count:
            row, column = self.nonfinite_position or (0, 0)
            raise ArgumentError(
                name,
                "finite values",
                f"{self.nonfinite_count} NaN or infinite in {self.nonfinite_rows} rows, "
                f"the first at row {{row}}, column {column}{where}",
                fix=fix,
                row=row,
            )


def merge_status(parts: Sequence[Tensor], rows_after: Sequence[int], columns: int) -> Tensor:
    """The status of consecutive segments of rows, each followed by `rows_after` further rows."""
    words = torch.stack(list(parts))
    after = torch.tensor(rows_after, dtype=torch.int64, device=words.device)
    label_from_end = torch.where(words[:, 0] > 0, words[:, 0] + after, 0)
    from_end = torch.where(words[:, 3] > 0, words[:, 3] + after * columns, 0)
    first = label_from_end.argmax()
    return torch.stack(
        [
            label_from_end[first],
            words[first, 1],
            words[:, 2].sum(),
            from_end.max(),
            words[:, 4].sum(),
        ]
    )
