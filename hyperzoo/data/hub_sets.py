"""Data sets of the Hub, read by the package `datasets`."""

from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from hyperzoo.errors import DataError, MissingExtraError

VARIABLE = "HYPERZOO_DATA"


def load_from_hub(
    hub_id: str, config: str | None, split: str | None, revision: str | None, origin: str, files: str | None = None
) -> Any:
    """A split, or without one all splits by name, as `datasets` downloads and caches them; raises a DataError.

    `files`: where they belong below HYPERZOO_DATA [default: parquet files in the folder of the repository].
    """
    files = files or f"{hub_id}/{config or 'default'}/{split or 'train'}-*-of-*.parquet"
    datasets = import_datasets()
    try:
        return datasets.load_dataset(hub_id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{origin}, could not be read ({type(error).__name__}: {error}). Go online without HF_HUB_OFFLINE, log in "
            f"(hf auth login) to a private or gated set, or set {VARIABLE} to a folder with {files}"
        ) from error


def import_datasets():
    try:
        import datasets
        import datasets.exceptions
    except ImportError as error:
        raise MissingExtraError(
            f"data sets need the package datasets: pip install hyperzoo[train] ({error})"
        ) from error
    return datasets
