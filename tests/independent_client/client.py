"""A KMS client on gRPC's C core: another HTTP/2, HPACK and gRPC than the daemon's own.

Prints one line a check, `ok <what>: <what was seen>`, and ends with `all checks passed`.
The first check that fails prints `FAILED <what>: <why>` and ends the process with 1.
At `restart now`, `slow now` and `heal now` it waits for a line on standard input: whoever
runs it restarts the daemon, or slows down or heals the way from the daemon to Vault.
Needs grpcio and nothing else: the few protobuf messages are written by hand.
"""

import argparse
import os
import sys
import threading
import time
import urllib.parse

import grpc


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


def parse(data):
    """Every length-delimited field, in order of appearance, as {number: [bytes]}."""
    fields, at = {}, 0

    def read_varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = read_varint()
        if key & 7 != 2:
            raise ValueError(f"unexpected wire type {key & 7}")
        length = read_varint()
        fields.setdefault(key >> 3, []).append(data[at : at + length])
        at += length
    return fields


class Kms:
    """One connection to the socket."""

    def __init__(self, target, authority=None):
        # A pool of its own for each channel, so that each is a connection of its own.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if authority is not None:
            options.append(("grpc.default_authority", authority))
        self.channel = grpc.insecure_channel(target, options=options)

    def method(self, name):
        return self.channel.unary_unary(name)

    def call(self, name, request, timeout=3.0, wait=False):
        answer = self.method(name)(request, timeout=timeout, wait_for_ready=wait)
        return parse(answer)

    def v1(self, name, *fields, **kwargs):
        request = message((1, b"v1beta1"), *fields)
        return self.call(f"/v1beta1.KeyManagementService/{name}", request, **kwargs)

    def v2(self, name, *fields, **kwargs):
        return self.call(f"/v2.KeyManagementService/{name}", message(*fields), **kwargs)

    def close(self):
        self.channel.close()


def fail(what, why):
    print(f"FAILED {what}: {why}", flush=True)
    sys.exit(1)


def expect(condition, what, why):
    if not condition:
        fail(what, why)


def ask(whoever):
    """Asks whoever runs this for something, and waits until it is done."""
    print(whoever, flush=True)
    if not sys.stdin.readline():
        fail(whoever, "nobody answered")


def ok(what, seen):
    print(f"ok {what}: {seen}", flush=True)


def all_six(kms, what):
    """Every method of both services, as a kube-apiserver calls them."""
    version = kms.v1("Version")
    expect(version[1] == [b"v1beta1"], what, f"v1 Version says {version}")
    dek = os.urandom(32)
    cipher = kms.v1("Encrypt", (2, dek))[1][0]
    expect(0 < len(cipher) <= 65535, what, "v1 Encrypt answers no usable cipher")
    expect(kms.v1("Decrypt", (2, cipher))[1] == [dek], what, "v1 Decrypt gives something else")

    status = kms.v2("Status")
    expect(status[1] == [b"v2"], what, f"v2 Status says version {status.get(1)}")
    expect(status[2] == [b"ok"], what, f"v2 Status says healthz {status.get(2)}")
    key_id = status[3][0]
    seed = os.urandom(32)
    answer = kms.v2("Encrypt", (1, seed), (2, b"independent"))
    expect(answer[2] == [key_id], what, "v2 Encrypt has another key_id than Status")
    annotations = answer.get(3, [])
    stored = [(1, answer[1][0]), (2, b"independent"), (3, key_id)]
    stored += [(4, entry) for entry in annotations]
    expect(kms.v2("Decrypt", *stored)[1] == [seed], what, "v2 Decrypt gives something else")
    return key_id.decode()


def authority_forms(target, path):
    forms = [
        ("raw path (Kubernetes up to 1.28)", path),
        ("percent-encoded path (1.29 to 1.31)", urllib.parse.quote(path, safe="")),
        ("@name (abstract socket)", path if path.startswith("@") else "@vault-kms-proxy"),
        ("localhost (1.32 and later)", "localhost"),
    ]
    for name, authority in forms:
        kms = Kms(target, authority)
        key_id = all_six(kms, f"authority {name}")
        # A second round on the same connection uses the HPACK tables that the first filled.
        all_six(kms, f"authority {name}, again")
        ok(f"authority {name}", f":authority={authority} all six methods, key_id {key_id}")
        kms.close()


def deadlines(target):
    kms = Kms(target)
    all_six(kms, "deadline")
    dek = os.urandom(32)
    cipher = kms.v1("Encrypt", (2, dek))[1][0]
    ask("slow now")
    for timeout in [0.000001, 0.3, 0.9]:
        what = f"deadline of {timeout * 1e6:.0f} us"
        begin = time.monotonic()
        try:
            kms.v1("Decrypt", (2, cipher), timeout=timeout)
            fail(what, "a Vault that was to be slow answered in time")
        except grpc.RpcError as error:
            took = time.monotonic() - begin
            expect(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, what, error.code())
            if timeout > 0.1:
                # The daemon's own words come only when it answers before we give up.
                expect("no answer in time" in error.details(), what, error.details())
                expect(timeout / 2 < took < timeout, what, f"it took {took:.3f} s")
            ok(what, f"{error.code().name}, {error.details()}")
    ask("heal now")
    expect(kms.v1("Decrypt", (2, cipher), timeout=20.0)[1] == [dek], "deadline", "wrong DEK")
    ok("deadline of 20 s", "met, on the same connection")
    kms.close()


def cancellation(target):
    kms = Kms(target)
    all_six(kms, "cancellation")
    left = []
    kms.channel.subscribe(lambda state: left.append(state))
    encrypt = kms.method("/v2.KeyManagementService/Encrypt")
    cancelled = 0
    for _ in range(10):
        kept = encrypt.future(message((1, os.urandom(32)), (2, b"kept")), timeout=3.0)
        for _ in range(50):
            future = encrypt.future(message((1, os.urandom(32)), (2, b"cancel")), timeout=3.0)
            cancelled += future.cancel()
        try:
            kept.result()
        except grpc.RpcError as error:
            fail("cancellation", f"a call beside cancelled ones ended with {error}")
    expect(cancelled > 0, "cancellation", "no call could be cancelled")
    all_six(kms, "cancellation, the connection afterwards")
    left = [state.name for state in left if state != grpc.ChannelConnectivity.READY]
    expect(not left, "cancellation", f"the connection was lost: {left}")
    ok("cancellation", f"{cancelled} calls cancelled, those beside them and the connection go on")
    kms.close()


def four_at_once(target):
    failures = []

    def work(n):
        try:
            kms = Kms(target, None if n % 2 else f"/run/connection-{n}.sock")
            for _ in range(10):
                all_six(kms, f"connection {n}")
            kms.close()
        except BaseException as error:  # also the exit of a failed expectation
            failures.append(f"{n}: {error}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(not failures, "four connections", failures)
    ok("four connections at once", "10 rounds of all six methods on each")


def long_uid(target):
    kms = Kms(target)
    answer = kms.v2("Encrypt", (1, os.urandom(32)), (2, b"u" * 65536))
    expect(len(answer[1][0]) > 0, "64 KiB uid", "no ciphertext")
    ok("64 KiB uid", "Encrypt answered")
    kms.close()


def bad_input(target):
    kms = Kms(target)
    for name, cipher in [("empty", b""), ("binary", b"\x00\xff" * 20), ("foreign", b"k8s:x:y")]:
        try:
            kms.v1("Decrypt", (2, cipher))
            fail("bad input", f"{name} was decrypted")
        except grpc.RpcError as error:
            seen = error.code()
            expect(seen == grpc.StatusCode.INVALID_ARGUMENT, f"{name} ciphertext", seen)
    try:
        kms.v2("Encrypt", (1, os.urandom(32)), (2, b"u" * (1 << 20)))
        fail("bad input", "a message of 1 MiB was taken")
    except grpc.RpcError as error:
        expect(error.code() != grpc.StatusCode.OK, "1 MiB message", error.code())
    all_six(kms, "bad input, the connection afterwards")
    ok("bad input", "empty, binary, foreign and huge are refused, the connection goes on")
    kms.close()


def reconnect(target, path):
    kms = Kms(target, path)
    before = all_six(kms, "reconnect")
    ask("restart now")
    until = time.monotonic() + 20.0
    while True:
        try:
            kms.v1("Version", timeout=20.0, wait=True)
            break
        except grpc.RpcError as error:
            # Begun on the connection of the daemon that was killed, and lost with it.
            lost = error.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() < until
            expect(lost, "reconnect", f"{error.code()} {error.details()}")
    after = all_six(kms, "reconnect")
    expect(before == after, "reconnect", f"key_id was {before} and is {after}")
    ok("reconnect after a restart", f"the same channel goes on, key_id {after}")
    kms.close()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--socket", required=True, help="path of the socket, or @name")
    path = arguments.parse_args().socket
    target = f"unix-abstract:{path[1:]}" if path.startswith("@") else f"unix:{path}"
    authority_forms(target, path)
    deadlines(target)
    cancellation(target)
    four_at_once(target)
    long_uid(target)
    bad_input(target)
    reconnect(target, path)
    print(f"all checks passed with grpcio {grpc.__version__} on {target}", flush=True)


main()
