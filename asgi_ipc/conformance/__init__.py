"""The channel layer contracts as suites of tests: one test for each sentence, for any layer.

`Channels1Contract` is for blocking layers (the specification of Channels 1, asgiref 1), and
`Channels4Contract` for asynchronous ones (the Channel Layer Specification of Channels 2 to 4). They
need pytest, and the second one pytest-asyncio. A subclass makes the layer::

    import pytest
    from asgi_ipc.conformance import Channels4Contract
    from mylayer import MyChannelLayer


    class TestMyChannelLayer(Channels4Contract):
        @pytest.fixture
        def make_layer(self):
            return MyChannelLayer

        def make_peer(self, layer):
            return MyChannelLayer(**self.options)

The letters and numbers in the docstrings name the sentences: M for messages and channels, A for the
layer of Channels 1, B for that of Channels 4. Nothing is timed: a time limit only proves that
something happens at all. The suites know no layer and import nothing of the package around them.
"""

from .base import Contract
from .channels1 import Channels1Contract
from .channels4 import Channels4Contract

__all__ = ["Channels1Contract", "Channels4Contract", "Contract"]
