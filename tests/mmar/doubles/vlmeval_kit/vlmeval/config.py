"""The table of models: names and how to build them."""

from functools import partial

import vlmeval.vlm  # noqa: F401 - as the real one, whose models come from there

supported_VLM = {"Qwen2-VL-2B-Instruct": partial(dict)}  # noqa: N816 - its name
