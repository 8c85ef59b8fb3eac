"""The last step of a batch: to the device, then the postprocess."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ai.data.arguments import check_flag
from ai.data.batch.device import to_device
from ai.data.batch.page_locked import PageLocked, Stretch
from ai.data.batch.seeds import derive_seed
from ai.data.batch.transform import Applied, Transform


class Finish:
    """Moves and postprocesses batches.

    Args:
        postprocess: the dataset's.
        device: where batches go.
        pin: through page-locked memory; None means where `device` is CUDA.
    """

    def __init__(self, postprocess: Transform | None, device: torch.device, pin: bool | None) -> None:
        check_flag(or_none=True, pin=pin)
        if pin and not torch.cuda.is_available():
            raise ValueError("pin=True needs CUDA, which this machine does not have")
        self._postprocess = None if postprocess is None else Applied(postprocess, "postprocess")
        self._device = device
        pins = device.type == "cuda" and pin is not False
        self._page_locked = PageLocked(device) if pins else None

    def __call__(self, batch: Any, *place: int) -> Any:
        """Returns the finished batch; `place` (seed, epoch, …) seeds the generator that the postprocess may ask for."""
        with self.way() as way:
            moved = self.moved(batch, way)
        return self.changed(moved, *place)

    @contextmanager
    def way(self) -> Iterator[Stretch | None]:
        """The page-locked memory that one batch passes through, to be made in and moved out of; None: through none."""
        if self._page_locked is None:
            yield None
        else:
            with self._page_locked.stretch() as stretch:
                yield stretch

    def close(self) -> None:
        """Gives back the page-locked memory between two batches."""
        if self._page_locked is not None:
            self._page_locked.give_back()

    def moved(self, batch: Any, way: Stretch | None) -> Any:
        """Returns the batch on the device."""
        return to_device(batch, self._device, way or False)

    def changed(self, batch: Any, *place: int) -> Any:
        """Returns the batch after the postprocess."""
        if self._postprocess is None:
            return batch
        try:
            return self._postprocess(
                batch, lambda _name: torch.Generator(self._device).manual_seed(derive_seed(*place))
            )
        except StopIteration as error:  # would end the loop over the loader without a word
            raise RuntimeError("postprocess raised StopIteration") from error
