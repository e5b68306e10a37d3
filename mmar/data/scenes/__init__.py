"""Drawn scenes: shapes on plain backgrounds with exact captions, questions and a detector that reads pictures of them."""

from mmar.data.scenes.captions import caption, paraphrases, retellings, terse
from mmar.data.scenes.dataset import Question, SceneDataset, ask
from mmar.data.scenes.detector import Detection, detect
from mmar.data.scenes.drawing import draw
from mmar.data.scenes.questions import ANSWERS, CHANCE, FAMILIES
from mmar.data.scenes.repeats import RepeatedWords
from mmar.data.scenes.sampling import SampledScene, sample_scene
from mmar.data.scenes.scene import Glyph, Scene, SceneObject
from mmar.data.scenes.scoring import SceneScore, average, score

__all__ = [
    "ANSWERS",
    "CHANCE",
    "FAMILIES",
    "Detection",
    "Glyph",
    "Question",
    "RepeatedWords",
    "SampledScene",
    "Scene",
    "SceneDataset",
    "SceneObject",
    "SceneScore",
    "ask",
    "average",
    "caption",
    "detect",
    "draw",
    "paraphrases",
    "retellings",
    "sample_scene",
    "score",
    "terse",
]
