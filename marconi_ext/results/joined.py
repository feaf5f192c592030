"""Several replays of one trace, read as the arms of one comparison."""

from __future__ import annotations

from collections.abc import Sequence

from marconi_ext.results.folder import ArmInfo, RepeatFolder, ResultsFolder, RunInfo


class JoinedReplays(ResultsFolder):
    """folders: each of one arm, of the same trace; the first is the baseline. An arm is named after its folder."""

    def __init__(self, folders: Sequence[ResultsFolder]) -> None:
        super().__init__(folders[0].path)
        self._folders: dict[str, ResultsFolder] = {}
        for folder in folders:
            name = folder.path.resolve().name
            while name in self._folders:
                name += "'"
            self._folders[name] = folder

    def run(self) -> RunInfo:
        """The first one's, with all arms."""
        runs = {name: folder.run() for name, folder in self._folders.items()}
        first = next(iter(runs.values()))
        broken = [f"{name}: {run.error}" for name, run in runs.items() if run.error]
        return first.model_copy(
            update={
                "title": " and ".join(runs) + f" on {first.trace.source}",
                "arms": [run.arms[0].model_copy(update={"name": name}) for name, run in runs.items()],
                "repeats": min(run.repeats for run in runs.values()),
                "order": [],
                "finished": all(run.finished for run in runs.values()),
                "error": "; ".join(broken) or None,
            }
        )

    def repeat(self, arm: ArmInfo, number: int) -> RepeatFolder:
        return self._folders[arm.name].repeat(arm, number)

    def repeats(self, arm: ArmInfo) -> list[RepeatFolder]:
        return self._folders[arm.name].repeats(arm)


def join_replays(folders: Sequence[ResultsFolder]) -> list[ResultsFolder]:
    """`folders`, in which those of one arm and of the same requests have become one comparison."""
    same: dict[str, list[ResultsFolder]] = {}
    for folder in folders:
        run = folder.run()
        key = run.trace.digest if len(run.arms) == 1 else str(folder.path)
        same.setdefault(key, []).append(folder)
    return [found[0] if len(found) == 1 else JoinedReplays(found) for found in same.values()]
