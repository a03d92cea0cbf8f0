"""Routes of the control channel that change something. Each order is noted in events.jsonl, then carried out; what is
refused is noted there again, with the reason.
"""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from fastapi import Request

from common.errors import ControlError, MiniChatGPTError
from deploy.console import one_line
from deploy.control.calls import Calls
from deploy.control.models import PauseRequest
from deploy.control.run_controls import Controls
from deploy.control.run_status import (
    CheckpointInfo,
    CheckpointRequest,
    RunStatus,
    ScaleRequest,
    SettingsRequest,
    StopRequest,
)

T = TypeVar("T")


class SteerRoutes:
    """The endpoints.

    Args:
        controls: the run.
        asking: calls of the run.
        note: told of every order, who gave it from where, and why it was refused.
    """

    def __init__(self, controls: Controls, asking: Calls, note: Callable[[str], None]) -> None:
        self._controls = controls
        self._asking = asking
        self._note = note

    async def scale(self, request: Request, wanted: ScaleRequest) -> RunStatus:
        """Set how many rollout workers and reward replicas there shall be; returns before they are."""
        return await self._order(
            request,
            lambda: self._controls.scale(
                rollout_workers=wanted.rollout_workers, reward_replicas=wanted.reward_replicas
            ),
        )

    async def pause(self, request: Request, wanted: PauseRequest | None = None) -> RunStatus:
        """Let the run stand still once the running update is done; returns before it does."""
        reason = (wanted or PauseRequest()).reason
        return await self._order(request, lambda: self._controls.pause(reason))

    async def resume(self, request: Request) -> RunStatus:
        """Let the run go on; nothing where it is not paused."""
        return await self._order(request, self._controls.resume)

    async def change(self, request: Request, wanted: SettingsRequest) -> RunStatus:
        """Change settings from the next update on."""
        return await self._order(request, lambda: self._controls.change(wanted))

    async def checkpoint(self, request: Request, wanted: CheckpointRequest | None = None) -> CheckpointInfo:
        """Have a checkpoint written, and wait until it is verified."""
        wait_s = (wanted or CheckpointRequest()).wait_s
        future: Future[CheckpointInfo] = await self._order(request, self._controls.checkpoint)
        await self._asking.until(
            future.done, wait_s, f"the checkpoint is not written and verified within {wait_s:g} s; it goes on"
        )
        try:
            return future.result(timeout=0)
        except CancelledError as error:
            raise ControlError("the run gave the checkpoint up; ask again") from error

    async def stop(self, request: Request, wanted: StopRequest | None = None) -> RunStatus:
        """Ask the run to end: it finishes or abandons its update, writes a checkpoint and goes."""
        reason = (wanted or StopRequest()).reason
        await self._order(request, lambda: self._controls.stop(reason))
        return await self._asking.ask(self._controls.status)

    async def _order(self, request: Request, call: Callable[[], T]) -> T:
        """Have it carried out, noted first: what hangs or fails was asked for too."""
        client = "an unknown address" if request.client is None else request.client.host
        text = f"{request.method} {request.url.path} from {client}"

        def noted() -> T:
            self._note(text)
            try:
                return call()
            except MiniChatGPTError as error:
                self._note(f"{text} refused: {one_line(str(error))}")
                raise

        return await self._asking.ask(noted)
