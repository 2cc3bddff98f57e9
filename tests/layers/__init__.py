"""What the blocking and the asyncio layer promise beyond the contracts."""
