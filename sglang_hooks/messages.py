"""Where messages begin, from the chat template that the server uses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from marconi_ext.config import MarconiConfig
from marconi_ext.policies.messages import MessageHeaders, from_tokenizer

logger = logging.getLogger(__name__)


def headers_for(scheduler: Any, config: MarconiConfig) -> MessageHeaders:
    """The headers that `--marconi-message-tokens` asks for.

    scheduler: SGLang's, whose `tokenizer` is None under --skip-tokenizer-init. A template that SGLang knows by name
    (`--chat-template chatml`) isn't looked at: its headers are text, not tokens of their own.
    """
    if config.message_tokens == "none":
        return MessageHeaders()
    if config.message_tokens != "auto":
        return MessageHeaders(tuple((token,) for token in config.message_tokens))
    template, given = None, scheduler.server_args.chat_template
    try:
        if given is not None:
            if not Path(given).is_file():
                return MessageHeaders()
            template = Path(given).read_text(encoding="utf-8")
        return from_tokenizer(scheduler.tokenizer, template)
    except Exception as error:  # whatever a tokenizer of somebody else's does, it costs a hint
        logger.warning("marconi-ext: no message boundaries, the chat template can't be read: %s", error)
        return MessageHeaders()
