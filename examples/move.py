"""Moves an export of a service to another server, and tells how it goes."""

from flexmigrate import Address, ExportService, MirrorRequest, Sample


def show(sample: Sample) -> None:
    print(f"{sample.phase}: {sample.bytes_sent} bytes are sent, {sample.bytes_left} are left")


async def move(service: ExportService, name: str, address: Address) -> str:
    """Return what the migration came to: "complete", where the image is there now.

    :raises CommandError: it could not begin.
    """
    request = MirrorRequest(address, export=name)
    migration = await service.migrate(request, show)
    summary = await migration.result
    return summary.verdict
