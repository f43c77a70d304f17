"""What a verb prints of a finished run."""

from pathlib import Path


def show_result(result: dict, folder: Path) -> None:
    from ..report.tables import result_table

    print(result_table(result))
    print(f"\npictures: {folder / 'pictures'}\nreport:   {folder / 'report.html'}")


def show_finetuned(result: dict, folder: Path) -> None:
    from ..report.tables import finetune_table

    print(finetune_table(result))
    print(f"\ncurves: {folder / 'pictures' / 'curves.png'}")
