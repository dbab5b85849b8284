"""A container engine that isn't one, on a UNIX socket: the HTTP API that `docker_runtime.py` speaks, and all
the ways in which a real engine goes wrong and can't be made to.

`FakeDaemon` (daemon.py) serves the containers of a `FakeEngine` (../fake_runtime.py), which are scripted programs
without processes. `faults.py` names what can go wrong with a request. It passes the contract tests of the real
engine (../test_runtime_contract.py), over the same SDK and the same kind of socket.
"""
