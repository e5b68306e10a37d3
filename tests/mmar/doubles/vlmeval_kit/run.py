"""The kit's script: models by name from the table, data sets by name, an answer to each of their rows."""

import argparse
import json
from pathlib import Path

from vlmeval.config import supported_VLM


def infer_data(model_name: str, name: str, work_dir: Path) -> None:
    """As vlmeval.inference: the model is built without arguments and asked row by row."""
    rows = json.loads(Path(work_dir, "data.json").read_text())[name]
    model = supported_VLM[model_name]()
    if not getattr(model, "is_api", False):
        model.set_dump_image(lambda line: line)
    answers = {}
    for i, struct in enumerate(rows):
        assert not (hasattr(model, "use_custom_prompt") and model.use_custom_prompt(name))
        answers[i] = model.generate(message=struct, dataset=name)
    (work_dir / f"{model_name}_{name}.json").write_text(json.dumps(answers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=str, nargs="+")
    parser.add_argument("--model", type=str, nargs="+")
    parser.add_argument("--work-dir", type=Path, default=Path("outputs"))
    parser.add_argument("--judge", type=str, default=None)
    parser.add_argument("--mode", type=str, default="all", choices=["all", "infer"])
    args = parser.parse_args()
    for model_name in args.model:
        for name in args.data:
            infer_data(model_name, name, args.work_dir)


if __name__ == "__main__":
    main()
