"""Build marconi-ext: explicit packages, so that `kernels/` is only ever importable as `marconi_kernels`.

SGLang imports the PyPI package `kernels`; a `kernels/__init__.py` here, or `find_packages`, would shadow it.
"""

import re
from pathlib import Path

from setuptools import setup

CHECK = ["hypothesis>=6.100", "mypy>=1.11", "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6"]
DOCS = ["zensical>=0.0.70", "mkdocstrings[python]>=0.26"]
ROUTER = ["msgspec>=0.18", "pyzmq>=26"]
SGLANG = "sglang==0.5.23"  # what it pins comes along: torch 2.14.1, triton 3.8.0, flashinfer

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "marconi_ext/__init__.py").read_text(encoding="utf-8"))[
    1
]

setup(
    name="marconi-ext",
    version=VERSION,
    description="Exact prefix caching for hybrid LLMs (recurrent layers beside attention): an extension of SGLang",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    project_urls={
        "Paper": "https://arxiv.org/abs/2411.19379",
        "SGLang": "https://github.com/sgl-project/sglang",
    },
    keywords="llm inference prefix-cache mamba sglang",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    package_dir={"marconi_kernels": "kernels"},
    packages=[
        "marconi_ext",
        "marconi_ext.commands",
        "marconi_ext.commands.bench",
        "marconi_ext.commands.demo",
        "marconi_ext.commands.doctor",
        "marconi_ext.commands.kernels",
        "marconi_ext.commands.replay",
        "marconi_ext.commands.simulate",
        "marconi_ext.commands.size",
        "marconi_ext.commands.trace",
        "marconi_ext.commands.verify",
        "marconi_ext.models",
        "marconi_ext.policies",
        "marconi_ext.policies.learned",
        "marconi_ext.policies.paper",
        "marconi_ext.policies.table",
        "marconi_ext.profiles",
        "marconi_ext.releases",
        "marconi_ext.replay",
        "marconi_ext.report",
        "marconi_ext.results",
        "marconi_ext.routing",
        "marconi_ext.servers",
        "marconi_ext.simulator",
        "marconi_ext.traces",
        "marconi_ext.watch",
        "marconi_kernels",
        "marconi_kernels.delta_rule",
        "marconi_kernels.mamba2",
        "marconi_kernels.report",
        "marconi_kernels.torch_twins",
        "sglang_hooks",
        "sglang_hooks.cpu_platform",
        "sglang_hooks.doctor",
        "sglang_hooks.observe",
        "sglang_hooks.operator",
        "sglang_hooks.radix",
        "sglang_hooks.recurrence",
    ],
    package_data={
        "marconi_ext": [
            "py.typed",
            "profiles/configs/*.json",
            "report/*.j2",
            "traces/templates/*.jinja",
            "dashboards/*.json",
            "dashboards/*.yml",
        ],
        "marconi_kernels": ["py.typed", "report/resource_budget.json"],
        "sglang_hooks": ["py.typed"],
    },
    install_requires=[
        "aiohttp>=3.9",
        "httpx>=0.27",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "mistral-common>=1.9",  # ships the Tekken tokenizer
        "numpy>=1.26",
        "orjson>=3.9",
        "pydantic>=2.7",
        "rich>=13.7",
        "safetensors>=0.4",
        "typer>=0.12",
    ],
    extras_require={
        "sglang": [SGLANG],
        "router": ROUTER,
        "check": [*CHECK, *ROUTER],
        "coverage": ["coverage>=7.4", "pytest-cov>=5"],
        "docs": DOCS,
        "test": [SGLANG, *CHECK],
    },
    entry_points={
        "console_scripts": ["marconi = marconi_ext.cli:main"],
        "sglang.srt.plugins": [
            "marconi = sglang_hooks.plugin:register",
            "marconi_cpu = sglang_hooks.cpu_platform:apply",  # a no-op unless SGLANG_PLATFORM names it
        ],
        "sglang.srt.platforms": ["marconi_cpu = sglang_hooks.cpu_platform:activate"],
    },
)
