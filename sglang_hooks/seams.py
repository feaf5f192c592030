"""Every name of SGLang that the extension patches in a scheduler process, each with the reason.

SGLang only logs a plugin's exception and serves on as stock, so `hooks.install` checks that each hook really took.
Remove a hook when upstream offers the same as an API; the signatures are compared with the installed SGLang
before anything is patched.

Not patched but subclassed, and handed to SGLang through its own registries and arguments: UnifiedRadixCache
(`pools.py`, to make room; `cache.py`, to publish several states a request), MambaComponent (`component.py`, exact
states; `publishing.py`, `state_eviction.py`), FullComponent (`kv_eviction.py`, the order in which KV goes),
UnifiedTreeCore (`tree_core.py`, shorter walks and changes in one step), PrefillBudget (`prefill_budget.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .hooks import Hook, SeamError, check_signatures, install
from .process_state import live

# ---- hooks: each looks for the live extension first, so that a stock model passes through ----


def _scheduler_init(
    original: Callable[..., Any], scheduler: Any, server_args: Any, *args: Any, **kwargs: Any
) -> None:
    from .flags import config_of

    config = config_of(server_args)
    if config is None:
        return original(scheduler, server_args, *args, **kwargs)
    hooks = live_hooks()
    problems = check_signatures(hooks)
    if problems:
        raise SeamError("this SGLang differs from the supported one: " + "; ".join(problems))
    install(hooks)
    original(scheduler, server_args, *args, **kwargs)
    from .messages import headers_for
    from .observe.metrics import start_publishing
    from .operator.memory import remember
    from .status import announce, report

    state = live()
    if state is None:
        return
    state.cache.mamba.serving.headers = headers_for(scheduler, config)
    state.memory = remember(state.cache.mamba.records, config)
    announce(state, scheduler)
    state.metrics = start_publishing(scheduler.metrics_reporter, lambda: report(state))


def _create_cache(original: Callable[..., Any], ctx: Any, **kwargs: Any) -> Any:
    from .assembly import build_cache
    from .flags import config_of

    config = config_of(ctx.server_args)
    if config is None or ctx.disable_radix_cache:
        return original(ctx, **kwargs)
    return build_cache(original, ctx, config=config)


def _plan_extend(original: Callable[..., Any], batch: Any, req: Any) -> Any:
    state = live()
    if state is None:
        return original(batch, req)
    from sglang.srt.managers.schedule_batch import _MambaRadixCacheV2TrackEntry

    if state.runs is not None:
        state.runs.begin(req)
    state.cache.mamba.plan_request(req)
    return _MambaRadixCacheV2TrackEntry(False, req.kv.mamba_next_track_idx, -1)


def _next_prefill(original: Callable[..., Any], scheduler: Any, running_batch: Any) -> Any:
    state = live()
    if state is None or scheduler.tree_cache is not state.cache:
        return original(scheduler, running_batch)
    queue = scheduler.waiting_queue
    late = state.twins.waiting(queue)
    waiting = set(map(id, late))
    sent = [req for req in queue if id(req) not in waiting] if late else list(queue)
    scheduler.waiting_queue = sent if late else queue
    result = original(scheduler, running_batch)
    state.twins.went(sent, scheduler.waiting_queue)
    if late:
        place = {id(req): number for number, req in enumerate(queue)}
        scheduler.waiting_queue = sorted(
            [*scheduler.waiting_queue, *late], key=lambda req: place.get(id(req), len(place))
        )
    return result


def _run_batch(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    state = live()
    if state is None:
        return original(scheduler, batch, *args, **kwargs)
    state.forward.arm(batch)
    state.cache.mamba.answers.track(batch)
    try:
        return original(scheduler, batch, *args, **kwargs)
    finally:
        state.forward.disarm()
        _keep_house(None, scheduler)


def _keep_house(_result: Any, _scheduler: Any) -> None:
    state = live()
    if state is None:
        return
    state.cache.mamba.runtime.catch_up()
    state.cache.census.walk_if_due()
    if state.metrics is not None:
        state.metrics.publish_if_due()
    state.cache.mamba.pins.check_if_due()
    if state.split is not None:
        state.split.look_if_due()
    if state.memory is not None:
        state.memory.write_if_due()
    if state.cache.mamba.events is not None:
        state.cache.mamba.events.flush()


def _prefill_budget(original: Callable[..., Any], allocator: Any, tree_cache: Any, **kwargs: Any) -> Any:
    state = live()
    if state is None or tree_cache is not state.cache or tree_cache.shared is None:
        return original(allocator, tree_cache, **kwargs)
    from .radix.prefill_budget import SharedPrefillBudget

    return SharedPrefillBudget(allocator, tree_cache, **kwargs)


def _most_requests(original: Callable[..., int], configurator: Any, token_capacity: int) -> int:
    from .radix.concurrency import most_requests

    return most_requests(original, configurator, token_capacity)


def _admit_request(original: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    state = live()
    if state is not None and adder.tree_cache is state.cache and state.cache.shared is None:
        from sglang.srt.managers.schedule_policy import AddReqResult

        from .radix.concurrency import has_slots_for

        if not has_slots_for(state.cache, req, adder.can_run_list):
            state.ledger.counters["waited_for_a_slot"] += 1
            return AddReqResult.OTHER
    return original(adder, req, *args, **kwargs)


def _admission(_result: None, adder: Any, *_args: Any, **_kwargs: Any) -> None:
    state = live()
    if state is not None and state.cache.shared is not None and adder.tree_cache is state.cache:
        adder.rem_mamba_slots = state.cache.reclaimable_slots()
        adder.memory_budget.may_wait = adder.running_batch is not None and bool(adder.running_batch.reqs)


def _price_of_states(original: Callable[..., int], adder: Any, req: Any, **kwargs: Any) -> int:
    tokens, state = original(adder, req, **kwargs), live()
    if state is None or state.cache.shared is None:
        return tokens
    tracking = state.cache.req_to_token_pool.mamba_initial_tracking_slots
    return tokens + state.cache.shared.states_beyond(req, tracking) * adder._mamba_slot_cost


def _track_grid(original: Callable[..., int], tree_page: int) -> int:
    state = live()
    if state is None:
        return original(tree_page)
    # At page 1 the running slot itself is donated; else the last page multiple is what a key can name.
    return 1 << 40 if tree_page == 1 else tree_page


def _internal_state(result: Any, _scheduler: Any, _recv_req: Any) -> None:
    state = live()
    if state is not None:
        from .status import report

        asked_for = state.tree_dumps.section(state.cache) | state.desk.section()
        result.internal_state["marconi"] = report(state) | asked_for


def _set_internal_state(original: Callable[..., Any], scheduler: Any, recv_req: Any) -> Any:
    from marconi_ext.watch.sealed_tokens import TREE_ARGUMENT

    state = live()
    asked = recv_req.server_args
    if state is None or not (TREE_ARGUMENT in asked or state.desk.is_for_us(asked)):
        return original(scheduler, recv_req)
    from sglang.srt.managers.io_struct import SetInternalStateReqOutput

    taken = state.tree_dumps.ask(asked) if TREE_ARGUMENT in asked else state.desk.take(asked)
    return SetInternalStateReqOutput(updated=taken)


def _to_queue(original: Callable[..., Any], scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    if live() is not None:
        from .operator.wishes import WishError, wishes_of

        try:
            req.marconi_wishes = wishes_of(req.sampling_params.custom_params)
            req.skip_radix_cache_insert |= not req.marconi_wishes.store
        except WishError as error:
            req.set_finish_with_abort(str(error))
    return original(scheduler, req, *args, **kwargs)


def _is_request_level(original: Callable[..., bool], streamer: Any, key: str) -> bool:
    return key == "marconi" or original(streamer, key)


SCHEDULER_INIT = Hook(
    "sglang.srt.managers.scheduler.Scheduler.__init__",
    "around",
    _scheduler_init,
    why="the first place in a scheduler process that sees the arguments: patch the rest only if enabled",
    parameters="self server_args port_args",
)

LIVE_HOOKS = (
    Hook(
        "sglang.srt.mem_cache.registry.create_unified_radix_cache",
        "around",
        _create_cache,
        why="our cache and Mamba component; a named cache backend would be refused with HiCache",
        parameters="ctx cache_class",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend",
        "around",
        _plan_extend,
        why="stock plans one grid-aligned state an extend; we plan exact ones and turn its tracking off",
        parameters="self req",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_new_batch_prefill",
        "around",
        _next_prefill,
        why="requests with a prompt that is being prefilled wait for its end, and then reuse it whole",
        parameters="self running_batch",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.run_batch",
        "around",
        _run_batch,
        why="carry the batch's plan to its forward pass, learn that it was launched, compute and publish meanwhile",
        parameters="self batch pp_proxy_tensors",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.on_idle",
        "after",
        _keep_house,
        why="compute what the policy has left for later, publish what the last batches before a pause counted",
        parameters="self",
    ),
    Hook(
        "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.create_prefill_budget",
        "around",
        _prefill_budget,
        why="in one buffer of bytes, states that can go are room for KV",
        parameters="self tree_cache num_mixed_decode_tokens",
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.PrefillAdder.__init__",
        "after",
        _admission,
        why="in one buffer of bytes, KV that can go is room for states; a piece of a prompt may wait for room",
        parameters="self page_size tree_cache token_to_kv_pool_allocator running_batch new_token_ratio "
        "rem_input_tokens rem_chunk_tokens num_mixed_decode_tokens priority_scheduling_preemption_threshold "
        "max_prefill_bs max_running_requests prefill_max_requests prefill_delayer_single_pass dllm_config "
        "waiting_queue_len prefill_tile_block_m",
    ),
    Hook(
        "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator.resolve_max_num_reqs",
        "around",
        _most_requests,
        why="the cap on running requests reckons with slots that a request has in stock alone",
        parameters="self token_capacity",
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req",
        "around",
        _admit_request,
        why="where states that are being saved have the slots, the next request waits; stock's cap leaves room instead",
        parameters="self req has_chunked_req truncation_align_size",
    ),
    Hook(
        "sglang.srt.managers.schedule_policy.PrefillAdder._mamba_gap_budget_for_req",
        "around",
        _price_of_states,
        why="in one buffer of bytes, a request's further states are paid for when it is admitted",
        parameters="self req include_host_hit",
    ),
    Hook(
        "sglang.srt.runtime_context.mamba_track_grid",
        "around",
        _track_grid,
        why="no tracking during decode at page 1, page multiples above",
        parameters="tree_page",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_internal_state",
        "after",
        _internal_state,
        why="counters and the slot census in /server_info",
        parameters="self recv_req",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.set_internal_state",
        "around",
        _set_internal_state,
        why="ask for a dump of the tree, or anything else: the one endpoint that carries an argument to the scheduler",
        parameters="self recv_req",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
        "around",
        _to_queue,
        why="what a request asks of the extension: to be explained, not to be stored",
        parameters="self req is_retracted",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer."
        "is_request_level_customized_info_key",
        "around",
        _is_request_level,
        why="a request's explanation is one a request, not one a token",
        parameters="self key",
    ),
)


def live_hooks() -> tuple[Hook, ...]:
    """What is patched in a scheduler process with the extension: the cache's hooks and the recurrences'."""
    from .recurrence import registry
    from .recurrence.speculation import SPECULATION_HOOKS

    return (*LIVE_HOOKS, *registry.hooks(), *SPECULATION_HOOKS)
