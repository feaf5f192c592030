"""Text to token ids: Tekken out of mistral_common, or any Hugging Face tokenizer folder."""

from functools import lru_cache
from pathlib import Path
from typing import Protocol

from marconi_ext.errors import BadInputError

ROLES = ("system", "user", "assistant", "tool")
TEKKEN_FILE = "tekken_240911.json"  # the largest version whose control tokens name the system prompt
CACHED_CHARS = 20_000  # longer texts hardly ever come twice


class TextTokenizer(Protocol):
    """What the chat readers need of a tokenizer."""

    @property
    def start(self) -> list[int]:
        """Put before every prompt."""

    @property
    def frames(self) -> dict[str, tuple[list[int], list[int]]]:
        """Role → tokens before and after a message's text."""

    def encode(self, text: str) -> list[int]: ...


@lru_cache(maxsize=4)
def load_tokenizer(name: str) -> TextTokenizer:
    """Load `tekken`, or the tokenizer.json of a folder. Raises BadInputError where there is none."""
    return Tekken() if name == "tekken" else FolderTokenizer(Path(name))


class Tekken:
    """Mistral's Tekken (131,072 entries), with the control tokens of its own chat format around messages."""

    def __init__(self) -> None:
        import mistral_common
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        path = Path(mistral_common.__file__).parent / "data" / TEKKEN_FILE
        if not path.exists():
            raise BadInputError(
                f"--tokenizer tekken: mistral_common has no {TEKKEN_FILE}; use version 1.9 or later"
            )
        self.model = Tekkenizer.from_file(path)
        self._encode = lru_cache(maxsize=4_096)(self._encode_now)
        # The older name serves mistral_common before 1.10.
        control = getattr(self.model, "get_special_token", None) or self.model.get_control_token
        self.start = [self.model.bos_id]
        self.frames = {
            "system": ([control("[SYSTEM_PROMPT]")], [control("[/SYSTEM_PROMPT]")]),
            "user": ([control("[INST]")], [control("[/INST]")]),
            "assistant": ([], [self.model.eos_id]),
            "tool": ([control("[TOOL_RESULTS]")], [control("[/TOOL_RESULTS]")]),
        }

    def _encode_now(self, text: str) -> list[int]:
        return self.model.encode(text, bos=False, eos=False)

    def encode(self, text: str) -> list[int]:
        return self._encode(text) if len(text) <= CACHED_CHARS else self._encode_now(text)


class FolderTokenizer:
    """A Hugging Face folder's tokenizer.json, with plain text markers around messages."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInputError(f"--tokenizer {folder}: neither 'tekken' nor a folder with a tokenizer.json")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BadInputError("--tokenizer FOLDER needs the package: pip install tokenizers") from None
        try:
            self.model = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise BadInputError(f"--tokenizer {folder}: tokenizer.json can't be read: {error}") from None
        self._encode = lru_cache(maxsize=4_096)(self._encode_now)
        self.start: list[int] = []
        end = self._encode_now("\n")
        self.frames = {role: (self._encode_now(f"<|{role}|>\n"), end) for role in ROLES}

    def _encode_now(self, text: str) -> list[int]:
        whole = text.encode(
            "utf-8", "replace"
        ).decode()  # half a surrogate pair, which JSON may hold, would raise
        return self.model.encode(whole, add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        return self._encode(text) if len(text) <= CACHED_CHARS else self._encode_now(text)
