"""`qwenft prepare`: any data set becomes one that can be trained on."""

from pathlib import Path
from typing import Annotated

import typer

from qwenft.commands.options import Debug, Json, command_line, open_screen, shortest
from qwenft.core.usage import role_pairs


def prepare(
    dataset: Annotated[str, typer.Option("--dataset", help="Hub id (owner/name[:config]), a folder or a file.")],
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: data/NAME.")] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this split; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first N rows of each split.")] = None,
    task: Annotated[str, typer.Option(help="auto, grounding, detection or caption.")] = "auto",
    bbox_format: Annotated[
        str,
        typer.Option(help="auto, xyxy, xywh, cxcywh, xyxy_norm, xywh_norm, cxcywh_norm or xyxy_1000."),
    ] = "auto",
    columns: Annotated[
        str | None, typer.Option(help="Where the guess is wrong: image=img,query=text,bbox=box.")
    ] = None,
    rename: Annotated[
        str | None,
        typer.Option(metavar="OLD=NEW,...", help="Categories under other names; or a YAML file with a line for each."),
    ] = None,
    exif: Annotated[
        str,
        typer.Option(help="Which way up the boxes of turned pictures are meant: auto, upright or stored."),
    ] = "auto",
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut boxes at the picture's border rather than reject them.")
    ] = False,
    val_fraction: Annotated[
        float, typer.Option(help="Of the pictures, held out where the source holds none out.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Decides the division into splits.")] = 0,
    output_format: Annotated[str, typer.Option("--format", help="jsonl, or json (one array).")] = "jsonl",
    preview: Annotated[int, typer.Option(help="How many pictures are drawn with their boxes.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Take pictures behind links that leave the folder.")
    ] = False,
    hf_endpoint: Annotated[
        str | None,
        typer.Option(help="A mirror of the hub, such as https://hf-mirror.com. Default: HF_ENDPOINT."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub data set.")] = None,
    send_token: Annotated[bool, typer.Option("--send-token", help="Let a mirror have your hub token.")] = False,
    num_proc: Annotated[int, typer.Option(help="Processes that decode pictures.")] = 1,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", help="Also as qwen, swift, llamafactory, coco or yolo, under exports/; repeatable."),
    ] = None,
    negatives: Annotated[
        float,
        typer.Option(
            metavar="RATIO",
            help="Make questions about what is not there: so many for each one with an answer, where the annotations "
            "prove it.",
        ),
    ] = 0.0,
    negatives_unproved: Annotated[
        bool, typer.Option("--negatives-unproved", help="Fill up with ones that nothing proves, marked as such.")
    ] = False,
    subsets: Annotated[
        float,
        typer.Option(
            metavar="RATIO",
            help="Make detection questions about some of the categories, present and absent: so many for each one "
            "about all, to train on.",
        ),
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, write nothing.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a data set and rewrite it as one that can be trained on.

    Example: qwenft prepare --dataset Kangheng/refcocog
    """
    with open_screen() as screen:
        screen.wait(f"reading {dataset}")
        pairs = role_pairs(columns)
        from qwenft.prepare.build import prepare_dataset
        from qwenft.prepare.rename import read_names

        made = prepare_dataset(
            dataset,
            out=out,
            hf_endpoint=hf_endpoint,
            revision=revision,
            splits=split or (),
            limit=limit,
            task=task,
            bbox_format=bbox_format,
            columns=pairs,
            rename=read_names(rename) if rename else None,
            output_format=output_format,
            val_fraction=val_fraction,
            seed=seed,
            overwrite=overwrite,
            preview=preview,
            send_token=send_token,
            follow_links=follow_links,
            clip=clip,
            exif=exif,
            export=export or (),
            num_proc=num_proc,
            negatives=negatives,
            negatives_unproved=negatives_unproved,
            subsets=subsets,
            dry_run=dry_run,
            command=command_line(),
            emit=screen.emit,
        )
        if json:
            screen.result({"path": str(made.path), **made.manifest.model_dump(mode="json")})
            return
        if dry_run:
            screen.hint(command_line(without="--dry-run"))
            return
        screen.dataset(made)
        screen.hint(f"qwenft train --data {shortest(made.path)}")
