"""Decode images and videos in child processes, under the limits of a job.

Whoever needs frames uses this: a run's decoders, training, and what shows or exports results.
"""

import logging
import math
from functools import partial

from pipeline.media.decode import decode_unit, decoder_modules
from pipeline.media.frames import Frames
from pipeline.storage.storage import Storage
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
from schemas.errors import ErrorType, ResourceError, UnitError
from schemas.job.resources import DecodeLimits
from schemas.shown import redact_uri
from schemas.tables.media import Part

logger = logging.getLogger(__name__)


class IsolatedDecoder:
    """Decodes units in child processes, up to ``num_children`` at a time.

    resources: of the job: its limits of time and memory.
    num_threads: decoding threads of one child.
    quiet: discard what libraries write to stderr, for a process whose stderr is a terminal.
    """

    def __init__(
        self,
        resources: DecodeLimits,
        storage: Storage,
        *,
        num_children: int = 1,
        num_threads: int = 1,
        quiet: bool = False,
    ) -> None:
        self.limits, self._storage, self._num_threads = resources, storage, num_threads
        # The planner's forker, which has nearly all that decoders need: a driver has only one.
        self._isolated = Isolated("pipeline.plan.sampler", num_children, quiet=quiet)

    def decode(self, part: Part, decoder: str = "auto") -> Frames:
        """Decode an image or a video as ``decode_unit`` does, which has the decoders' names.

        Raises:
            UnitError: as ``decode_unit``; or the child crashed, took too long or too much memory.
            ResourceError: no child can be started on this machine.
        """
        span = (part.sampling.end_seconds or 0.0) - (part.sampling.start_seconds or 0.0)
        # A file of few bytes may claim years.
        by_bytes = math.inf if part.media.size_bytes is None else part.media.size_bytes / 100
        limits = ChildLimits.of(self.limits, more_seconds=min(10 * span, by_bytes))
        modules = self._storage.modules(part.frames or (part.uri,)) | {decode_unit.__module__}
        if part.media.media_type == "video" and not part.frames:
            modules |= decoder_modules(decoder)
        decode = partial(decode_unit, decoder=decoder, num_threads=self._num_threads)
        try:
            frames: Frames = self._isolated.call(
                decode, part, self._storage, limits=limits, modules=modules
            )
        except (UnitError, ResourceError):
            raise
        except Exception as error:  # hostile media cost only their own unit
            logger.exception("decoding %s", redact_uri(part.uri))
            problem = f"decoding failed: {type(error).__name__}: {error}"
            raise UnitError(ErrorType.MEDIA_UNREADABLE, problem) from error
        return frames

    def close(self) -> None:
        """End the idle children now, rather than with this object."""
        self._isolated.close()
