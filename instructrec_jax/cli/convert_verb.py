"""`instructrec convert`: checkpoints between Hugging Face, T5X and this project."""

import argparse

from instructrec_jax.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a local checkpoint of any kind; which one is found out",
    )
    parser.add_argument(
        "dest",
        metavar="DEST",
        help="folder to write, which must be new, empty or hold the same conversion",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="KIND",
        help="hf, t5x or native (what train and score write and read themselves); or adapter",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="DTYPE",
        help="of the weights with --to=hf: float32 or, rounded, bfloat16 (default: %(default)s)",
    )
    parser.add_argument(
        "--scan_layers",
        action="store_true",
        help="with --to=t5x: stacks of layers, as T5X's scalable T5 has them",
    )


def _run(options: argparse.Namespace) -> None:
    from instructrec_jax.stages import convert

    convert.convert(
        source_path=options.source,
        output_dir=options.dest,
        to=options.to,
        dtype=options.dtype,
        scan_layers=options.scan_layers,
    )


CONVERT = Verb(
    name="convert",
    summary="Flan-T5 checkpoints between Hugging Face, T5X and native",
    description=(
        "Writes the parameters, the step and the tokenizer of a checkpoint as one of another\n"
        "kind, array by array, bit for bit. SOURCE is a folder with config.json and safetensors,\n"
        "a T5X checkpoint_<step> folder, or a MODEL_DIR (its best checkpoint, else its latest) or\n"
        "one of its step folders. T5 1.1 and Flan-T5 only. Adapters of a LoRA run are merged into\n"
        "the model they belong to; --to=adapter writes them alone, as PEFT keeps them. `train`\n"
        "and `score` also take any kind as it is, by INITIAL_CHECKPOINT_PATH and CHECKPOINT_PATH.\n"
        "Adafactor's state goes along between T5X and native; other optimizers stay behind."
    ),
    example="instructrec convert downloads/flan-t5-base runs/flan-t5-base --to=native",
    add_arguments=_add_arguments,
    run=_run,
)
