"""A negative control: the running slot is donated as if no verify were ahead of it. Called before an engine starts."""


def apply() -> None:
    import sglang_hooks.recurrence.speculation as speculation

    def steps_to_commit(self, batch, accept_index, accept_lens):
        last = accept_index.gather(1, (accept_lens.long() - 1)[:, None]).squeeze(1)
        return last - accept_index[:, 0]

    speculation.AcceptedRuns.launching = lambda self, batch: None
    speculation.AcceptedRuns.steps_to_commit = steps_to_commit
    speculation.AcceptedRuns.is_exact = lambda self, req, length: length == req.kv.kv_committed_len


def commit_whole_blocks() -> None:
    """Another, for drafts of a block: of a chain all is committed that was accepted, a request's own or not."""
    import sglang_hooks.recurrence.speculation as speculation

    speculation.AcceptedRuns.lens_to_commit = lambda self, batch, accept_lens, consumed: accept_lens
