"""Keys and certificates: accepted by Flower and by TLS, with the right modes, never overwritten; the roster is strict."""

from __future__ import annotations

import argparse
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from aulait import cli
from aulait.core.errors import ConfigError
from aulait.engines.deployment.pki import certificates, keys
from aulait.engines.deployment.protocol import signing
from aulait.engines.deployment.site import site_file

OPENSSH = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.fixture
def coordinator(tmp_path):
    keys.server(tmp_path / "server", ["localhost", "127.0.0.1", "::1"])
    return tmp_path / "server"


def site(tmp_path, name="ward-a"):
    keys.site(tmp_path / name, name)
    return tmp_path / name / "site-key.pub"


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def call(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


def test_flower_takes_the_keys_of_a_site(tmp_path):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import (
        public_key_to_bytes,
        sign_message,
        verify_signature,
    )
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    public = site(tmp_path)
    told = argparse.Namespace(auth_supernode_private_key=str(public.with_suffix("")), auth_supernode_public_key=None)
    private, derived = _try_setup_client_authentication(told)
    registered = try_load_public_key(public)
    assert registered == public_key_to_bytes(derived) == keys.as_pem(keys.public_line(public))
    assert verify_signature(derived, b"hello", sign_message(private, b"hello"))


def test_modes_of_files_and_folders(tmp_path, coordinator):
    public = site(tmp_path)
    for folder in (coordinator, coordinator / "roster", public.parent):
        assert mode(folder) == 0o700
    for path in (coordinator / "ca-key.pem", coordinator / "server-key.pem", coordinator / "order-key.pem", public.with_suffix("")):
        assert mode(path) == 0o600
    assert {p.name for p in coordinator.iterdir()} == {
        "ca.pem", "ca-key.pem", "server.pem", "server-key.pem", "order-key.pem", "order-key.pub", "roster"}
    assert {p.name for p in public.parent.iterdir()} == {"site-key", "site-key.pub", "site.toml"}


def test_a_private_file_is_private_from_its_first_moment(tmp_path, monkeypatch):
    seen = []
    whole = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777, **more: (seen.append((flags, mode)), whole(path, flags, mode, **more))[1])
    before = os.umask(0)
    try:
        keys.site(tmp_path / "a", "a")
    finally:
        os.umask(before)
    made = [(flags, mode) for flags, mode in seen if flags & os.O_CREAT]
    assert made[0][1] == 0o600
    assert all(flags & os.O_EXCL for flags, _ in made)
    assert mode(tmp_path / "a" / "site-key") == 0o600
    assert mode(tmp_path / "a") == 0o700


def test_keys_are_never_overwritten(tmp_path, coordinator):
    before = {p.name: p.read_bytes() for p in coordinator.iterdir() if p.is_file()}
    with pytest.raises(ConfigError, match="never overwritten"):
        keys.server(coordinator, ["localhost"])
    assert {p.name: p.read_bytes() for p in coordinator.iterdir() if p.is_file()} == before
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "site-key.pub").write_text("mine")
    with pytest.raises(ConfigError, match=r"site-key\.pub"):
        keys.site(tmp_path / "a", "a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["site-key.pub"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "site-key").symlink_to(tmp_path / "elsewhere")  # a link that leads nowhere is in the way too
    with pytest.raises(ConfigError, match="site-key"):
        keys.site(tmp_path / "b", "b")
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_no_half(tmp_path, monkeypatch):
    synced = []

    def full(handle):
        synced.append(handle)
        if len(synced) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keys.server(tmp_path / "server", ["localhost"])
    assert list((tmp_path / "server").iterdir()) == []


def shake_hands(folder, host, authority):
    """A TLS handshake in memory; raises where the client does not trust the server."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(folder / "server.pem", folder / "server-key.pem")
    client.load_verify_locations(authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=host)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    done = set()
    for _ in range(10):
        for end in (one, other):
            if end not in done:
                try:
                    end.do_handshake()
                    done.add(end)
                except ssl.SSLWantReadError:
                    pass
    assert len(done) == 2


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_site_trusts_the_server_by_every_name(coordinator, host):
    shake_hands(coordinator, host, coordinator / "ca.pem")


def test_a_site_trusts_no_other_name_and_no_other_authority(tmp_path, coordinator):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"):
        shake_hands(coordinator, "example.org", coordinator / "ca.pem")
    keys.server(tmp_path / "impostor", ["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path / "impostor", "localhost", coordinator / "ca.pem")


def test_what_the_certificates_say(coordinator):
    ca, server = (x509.load_pem_x509_certificate((coordinator / name).read_bytes()) for name in ("ca.pem", "server.pem"))
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    now = datetime.now(UTC)
    for certificate in (ca, server):
        assert now - timedelta(days=1, minutes=5) < certificate.not_valid_before_utc < now - timedelta(hours=23)
    assert timedelta(days=824) < server.not_valid_after_utc - now < timedelta(days=826)
    assert server.not_valid_after_utc < ca.not_valid_after_utc


def test_renew_keeps_keys_authority_and_hosts(coordinator):
    before = {p.name: p.read_bytes() for p in coordinator.iterdir() if p.is_file()}
    ends = keys.renew(coordinator, days=30)
    after = {p.name: p.read_bytes() for p in coordinator.iterdir() if p.is_file()}
    assert {name for name in after if after[name] != before.get(name)} == {"server.pem"}
    assert ends.hosts == ("localhost", "127.0.0.1", "::1")
    assert ends.server - datetime.now(UTC) < timedelta(days=31)
    shake_hands(coordinator, "localhost", coordinator / "ca.pem")
    assert keys.renew(coordinator, ["other.example.org"]).hosts == ("other.example.org",)
    with pytest.raises(ConfigError, match="left of the authority"):
        keys.renew(coordinator, days=certificates.AUTHORITY_DAYS + 1)
    (coordinator / "ca-key.pem").write_bytes((coordinator / "server-key.pem").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        keys.renew(coordinator)


@pytest.mark.parametrize("host", ["", "a b", "*.example.org", "https://example.org", "example.org:9443", "0.0.0.0", "::", "10.0.0.256",
                                  "224.0.0.1", "-a.org", "a..b", "x" * 64, "a\n", "ü.org"])
def test_bad_hosts(tmp_path, host):
    with pytest.raises(ConfigError, match="--host"):
        keys.server(tmp_path / "server", [host])
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("days", [0, -1, 10**9])
def test_bad_days(tmp_path, days):
    with pytest.raises(ConfigError, match="--days"):
        keys.server(tmp_path / "server", ["localhost"], days)


def test_enrol_and_roster(tmp_path, coordinator):
    a, b = site(tmp_path, "ward-a"), site(tmp_path, "ward-b")
    assert keys.roster(coordinator) == {}
    assert keys.enrol(coordinator, "ward-a", a) == []
    assert keys.enrol(coordinator, "ward-a", a) == []  # twice is once
    line = " ".join(a.read_text().split()[:2])
    assert keys.roster(coordinator) == {"ward-a": line}
    with pytest.raises(ConfigError, match="enrolled as 'ward-a'"):
        keys.enrol(coordinator, "ward-b", a)
    with pytest.raises(ConfigError, match="another key"):
        keys.enrol(coordinator, "ward-a", b)
    with pytest.raises(ConfigError, match="by case only"):
        keys.enrol(coordinator, "Ward-A", b)
    assert keys.roster(coordinator) == {"ward-a": line}
    assert keys.enrol(coordinator, "ward-a", b, replace=True) == ["ward-a"]
    assert keys.roster(coordinator) == {"ward-a": keys.public_line(b)}
    assert keys.enrol(coordinator, "ward-c", b, replace=True) == ["ward-a"]
    assert keys.roster(coordinator) == {"ward-c": keys.public_line(b)}
    assert [p.name for p in (coordinator / "roster").iterdir()] == ["ward-c.pub"]


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "../a", "a b", "a\n", "proxy-1", "Proxy-1", "reference-x", "server", "SERVER", "é",
                                  "x" * 65, "a\0"])
def test_bad_names(tmp_path, coordinator, name):
    public = site(tmp_path)
    for act in (lambda: keys.enrol(coordinator, name, public), lambda: keys.site(tmp_path / "new", name)):
        with pytest.raises(ConfigError, match="site name"):
            act()
    assert list((coordinator / "roster").iterdir()) == []
    assert not (tmp_path / "new").exists()


def bad_lines():
    p256 = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*OPENSSH)
    body = p256.split()[1]
    return {
        "empty": b"", "text": b"hello", "options": b'command="x" ' + p256, "two": p256 + b"\n" + p256, "space": b" " + p256,
        "p384": ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*OPENSSH),
        "ed25519": ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*OPENSSH),
        "pem": ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        "cut": p256[:-8], "longer": b"ecdsa-sha2-nistp256 " + body.rstrip(b"=") + b"AAAA", "binary": b"\xff" * 100,
        "control": p256 + b" a\x1b[2J", "large": p256 + b" " + b"a" * 100_000,
    }


@pytest.mark.parametrize("kind", list(bad_lines()))
def test_bad_public_keys(tmp_path, coordinator, kind):
    path = tmp_path / "bad.pub"
    path.write_bytes(bad_lines()[kind])
    with pytest.raises(ConfigError):
        keys.enrol(coordinator, "ward-a", path)
    assert list((coordinator / "roster").iterdir()) == []


def test_a_doubtful_roster_is_an_error(tmp_path, coordinator):
    public = site(tmp_path)
    keys.enrol(coordinator, "ward-a", public)
    twin = coordinator / "roster" / "ward-b.pub"
    twin.write_bytes(public.read_bytes())
    with pytest.raises(ConfigError, match="one key or one name"):
        keys.roster(coordinator)
    twin.unlink()
    (coordinator / "roster" / "server.pub").write_bytes(public.read_bytes())
    with pytest.raises(ConfigError, match="kept for sites of the server"):
        keys.roster(coordinator)
    (coordinator / "roster" / "server.pub").unlink()
    (coordinator / "roster").chmod(0o777)
    with pytest.raises(ConfigError, match="anybody may put keys"):
        keys.roster(coordinator)
    with pytest.raises(ConfigError, match="found no roster"):
        keys.roster(tmp_path)


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=70))
def test_signatures(content, other, forged):
    key, stranger = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    signature = signing.sign(key, content)
    assert len(signature) == signing.SIGNATURE_BYTES
    assert signing.verify(key.public_key(), content, signature)
    assert not signing.verify(stranger.public_key(), content, signature)
    assert signing.verify(key.public_key(), other, signature) == (other == content)
    assert not signing.verify(key.public_key(), content, forged)
    assert not signing.verify(key.public_key(), content, key.sign(content))  # the bare content, signed elsewhere, is no order


def test_order_keys_are_read_back(coordinator):
    private, public = signing.load_private(coordinator / "order-key.pem"), signing.load_public(coordinator / "order-key.pub")
    assert signing.verify(public, b"order", signing.sign(private, b"order"))
    assert not signing.verify(public, b"order", "text")


@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o620, 0o610, 0o644])
def test_a_private_key_that_others_may_read_is_refused(coordinator, open_to):
    (coordinator / "order-key.pem").chmod(open_to)
    with pytest.raises(ConfigError, match=f"{open_to:04o}.*0600.*chmod 600"):
        signing.load_private(coordinator / "order-key.pem")


def test_wrong_files_for_order_keys(tmp_path, coordinator):
    for path in (coordinator / "ca-key.pem", tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigError):
            signing.load_private(path)
    public = site(tmp_path)
    for path in (public, coordinator / "ca.pem", tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigError):
            signing.load_public(path)
    os.mkfifo(tmp_path / "fifo", 0o600)  # must not hang
    with pytest.raises(ConfigError, match="no plain file"):
        signing.load_private(tmp_path / "fifo")


def test_the_commands(tmp_path, coordinator):
    code, out, _ = call("keys", "site", tmp_path / "a", "--name", "ward-a", "--server", "fl.example.org:9443")
    assert code == 0
    assert site_file.read(tmp_path / "a" / "site.toml").site.server == "fl.example.org:9443"
    mark = keys.fingerprint(keys.public_line(tmp_path / "a" / "site-key.pub"))
    assert mark in out
    code, out, _ = call("keys", "enrol", coordinator, "ward-a", tmp_path / "a" / "site-key.pub")
    assert (code, mark in out) == (0, True)
    code, out, _ = call("keys", "list", coordinator)
    assert code == 0
    assert mark in out
    assert f"{keys.validity(coordinator).server:%Y-%m-%d}" in out
    code, out, _ = call("keys", "server", coordinator, "--renew", "--days", 20, "--json")
    assert code == 0
    assert '"hosts"' in out


@pytest.mark.parametrize("words", [
    ("server", "new"), ("server", "new", "--host", "a b"), ("site", "new"), ("site", "new", "--name", "server"),
    ("site", "new", "--name", "a", "--server", "https://x"), ("enrol", "new", "a", "b.pub"), ("list", "new"), ("server", "new", "--renew"), ("lst",)])
def test_bad_commands_are_one_line_and_exit_2(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("keys", *words)
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_without_a_command_the_help_is_shown():
    code, out, err = call("keys")
    assert (code, err) == (2, "")
    assert "enrol" in out
