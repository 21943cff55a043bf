"""Servers and proxies that know nothing of our design, one row each, and what starts them.

A row's text is a configuration with `@name`s in it, see `Options`; a line that names an option
which is None is left out. All of them listen on free ports of 127.0.0.1 and hand on to
`application.py`, but for nghttpd, which has files.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import trustme

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
LARGE = 50 * 1024 * 1024
USER, PASSWORD = "ann", "open-sesame"
PROTOCOLS = ("http", "https", "h2")

EVERYTHING = frozenset(
    {
        "application",
        "reload",
        "streams",
        "idle",
        "requests",
        "body limit",
        "websocket",
        "TLS versions",
        "client certificates",
    }
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one instance of a server is set up."""

    streams: int = 100  # at a time on an HTTP/2 connection
    idle: int = 30  # seconds that a connection is kept
    requests: int = 100_000  # on one connection
    max_body: int = 100_000_000  # bytes
    tls_min: str = "1.2"
    tls_max: str = "1.3"
    certificate_kind: str = "good"  # or "expired", or "wrong host"
    client_ca: str | None = None  # a file: clients must have a certificate of its
    credentials: str | None = None  # of a proxy: a file of users
    purpose: str = ""  # for which it has an instance of its own


@dataclass(frozen=True, kw_only=True)
class Server:
    """A row of the table: how to start it, and what it can do."""

    name: str
    program: str
    command: str  # without its program
    config: str = ""
    reload: signal.Signals | str | None = None  # a signal, or a command
    protocols: tuple[str, ...] = PROTOCOLS
    can: frozenset[str] = EVERYTHING
    needs: tuple[str, ...] = ()  # further files
    drains: bool = False  # answers over HTTP/2, when it reloads, whatever it has begun to
    kinds_of_proxy: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether it can be started."""
        path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
        return shutil.which(self.program, path=path) is not None and all(
            Path(one).exists() for one in self.needs
        )


NGINX = """\
user @user; daemon off; worker_processes 2; pid @dir/pid; error_log @dir/log;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path @dir/body; proxy_temp_path @dir/proxy; fastcgi_temp_path @dir/fastcgi;
  uwsgi_temp_path @dir/uwsgi; scgi_temp_path @dir/scgi;
  map $http_upgrade $connection_header { default upgrade; "" close; }
  ssl_certificate @certificate; ssl_certificate_key @key; ssl_protocols @tls_names;
  ssl_client_certificate @client_ca; ssl_verify_client on;
  keepalive_timeout @idle; keepalive_requests @requests; http2_max_concurrent_streams @streams;
  client_max_body_size @max_body; client_body_timeout 5s;
  server {
    listen 127.0.0.1:@plain backlog=1024; listen 127.0.0.1:@tls ssl http2 backlog=1024;
    location / {
      proxy_pass http://127.0.0.1:@application; proxy_http_version 1.1;
      proxy_request_buffering off; proxy_buffering off; proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_header;
    }
  }
}
"""

HAPROXY = """\
global
  tune.h2.max-concurrent-streams @streams
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout http-keep-alive @idles
frontend all
  bind 127.0.0.1:@plain
  bind 127.0.0.1:@tls ssl crt @pem alpn h2,http/1.1 @haproxy_tls
  http-request deny deny_status 413 if { req.hdr_val(content-length) gt @max_body }
  default_backend application
backend application
  http-reuse never
  server one 127.0.0.1:@application
"""

APACHE = """\
ServerRoot @dir
ServerName 127.0.0.1
User @apache_user
Group @apache_user
PidFile @dir/pid
ErrorLog @dir/log
DefaultRuntimeDir @dir
Mutex pthread
LoadModule mpm_event_module @modules/mod_mpm_event.so
LoadModule authz_core_module @modules/mod_authz_core.so
LoadModule socache_shmcb_module @modules/mod_socache_shmcb.so
LoadModule ssl_module @modules/mod_ssl.so
LoadModule http2_module @modules/mod_http2.so
LoadModule rewrite_module @modules/mod_rewrite.so
LoadModule proxy_module @modules/mod_proxy.so
LoadModule proxy_http_module @modules/mod_proxy_http.so
ServerLimit 8
StartServers 2
ThreadsPerChild 100
MaxRequestWorkers 800
Listen 127.0.0.1:@plain
Listen 127.0.0.1:@tls
KeepAliveTimeout @idle
MaxKeepAliveRequests @requests
RewriteEngine On
RewriteOptions InheritDown
RewriteCond expr "%{HTTP:Content-Length} -gt @max_body"
RewriteRule ^ - [R=413,L]
H2MaxSessionStreams @streams
GracefulShutdownTimeout 10
SSLProtocol -all @tls_plus
SSLCertificateFile @certificate
SSLCertificateKeyFile @key
SSLCACertificateFile @client_ca
SSLVerifyClient @verify
ProxyPass "/" "http://127.0.0.1:@application/" disablereuse=on upgrade=websocket
ProxyPreserveHost On
<VirtualHost 127.0.0.1:@tls>
  SSLEngine on
  RewriteEngine On
  Protocols h2 http/1.1
</VirtualHost>
"""

CADDY = r"""\
{
  admin 127.0.0.1:@admin
  auto_https off
  skip_install_trust
  storage file_system @dir
  servers {
    protocols h1 h2
    strict_sni_host insecure_off
    timeouts {
      idle @idles
    }
  }
}
(all) {
  bind 127.0.0.1
  @@large header_regexp Content-Length ^\d{@digits,}$
  respond @@large 413
  reverse_proxy 127.0.0.1:@application {
    flush_interval -1
    # Kept: version 2.6 now and then panics in a reload that finds it connecting.
    transport http {
      keepalive 20s
      keepalive_idle_conns_per_host 100
    }
  }
}
http://:@plain {
  import all
}
https://:@tls {
  import all
  @caddy_tls
}
"""

LIGHTTPD = """\
server.document-root = "@dir"
server.bind = "127.0.0.1"
server.port = @plain
server.errorlog = "@dir/log"
server.modules = ("mod_proxy", "mod_openssl")
server.feature-flags = ("server.graceful-shutdown-timeout" => 10, "server.h2proto" => "enable")
server.max-keep-alive-idle = @idle
server.max-keep-alive-requests = @requests
server.max-request-size = @max_body_kib
server.stream-request-body = 1
server.stream-response-body = 1
server.upload-dirs = ("@dir")
$SERVER["socket"] == "127.0.0.1:@tls" {
  ssl.engine = "enable"
  ssl.pemfile = "@certificate"
  ssl.privkey = "@key"
  ssl.openssl.ssl-conf-cmd = ("MinProtocol" => "TLSv@tls_min", "MaxProtocol" => "TLSv@tls_max")
  ssl.ca-file = "@client_ca"
  ssl.verifyclient.activate = "@client_ca_enforced"
  ssl.verifyclient.enforce = "@client_ca_enforced"
}
proxy.server = ("" => (("host" => "127.0.0.1", "port" => @application)))
proxy.header = ("upgrade" => "enable")
"""

SERVERS = (
    Server(
        name="nginx",
        program="nginx",
        command="-p @dir -e @dir/log -c @config",
        config=NGINX,
        drains=True,
        reload=signal.SIGHUP,
        can=EVERYTHING | {"slow handshake"},  # which is ours, one server is enough
    ),
    Server(
        name="haproxy",
        program="haproxy",
        command="-W -db -f @config",
        config=HAPROXY,
        drains=True,
        reload=signal.SIGUSR2,
        can=EVERYTHING - {"requests"},
    ),
    Server(
        name="apache",
        program="apache2",
        command="-DFOREGROUND -f @config",
        config=APACHE,
        reload=signal.SIGUSR1,
    ),
    Server(
        name="caddy",
        program="caddy",
        command="run --adapter caddyfile --config @config",
        config=CADDY,
        reload="caddy reload --force --adapter caddyfile --config @config"
        " --address 127.0.0.1:@admin",
        can=EVERYTHING - {"streams", "requests"},
    ),
    # Does not drain: DATA of a stream above its GOAWAY's last one, which was under way by then, is
    # an error to it (up to 1.4.85), and it resets all that it was to answer: PROTOCOL_ERROR.
    Server(
        name="lighttpd",
        program="lighttpd",
        command="-D -f @config",
        config=LIGHTTPD,
        reload=signal.SIGUSR1,
        can=EVERYTHING - {"streams"},  # 8, always
        needs=("/usr/lib/lighttpd/mod_openssl.so",),
    ),
    Server(
        name="nghttpd",
        program="nghttpd",
        command="-a 127.0.0.1 -m @streams -d @files --echo-upload @tls @key @certificate",
        protocols=("h2",),
        can=frozenset(),
    ),
    Server(
        name="node",
        program="node",
        command=f"{HERE / 'node_server.mjs'} @json",
        drains=True,
        reload=signal.SIGHUP,
    ),
)

SQUID = """\
http_port 127.0.0.1:@plain
pid_filename none
cache_log @dir/log
access_log none
cache_store_log none
cache_mem 8 MB
cache deny all
coredump_dir @dir
shutdown_lifetime 1 seconds
max_filedescriptors 4096
pinger_enable off
auth_param basic program /usr/lib/squid/basic_ncsa_auth @credentials
@squid_rules
"""

TINYPROXY = """\
Port @plain
Listen 127.0.0.1
Timeout 30
MaxClients 300
LogFile "@dir/log"
BasicAuth @credentials_text
"""

DANTED = """\
logoutput: @dir/log
internal: 127.0.0.1 port = @plain
external: 127.0.0.1
clientmethod: none
socksmethod: none
client pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }
socks pass { from: 127.0.0.0/8 to: 0.0.0.0/0 }
"""

PROXIES = (
    Server(
        name="squid",
        program="squid",
        command="--foreground -N -f @config",
        config=SQUID,
        kinds_of_proxy=("http", "credentials"),
    ),
    Server(
        name="tinyproxy",
        program="tinyproxy",
        command="-d -c @config",
        config=TINYPROXY,
        kinds_of_proxy=("http", "credentials"),
    ),
    Server(
        name="microsocks",
        program="microsocks",
        command="-i 127.0.0.1 -p @plain @microsocks_credentials",
        kinds_of_proxy=("socks5", "credentials"),
    ),
    Server(
        name="danted",
        program="danted",
        command="-f @config",
        config=DANTED,
        kinds_of_proxy=("socks5",),
    ),
)


class Text(string.Template):
    """`@name`: the servers' own languages use `$`."""

    delimiter = "@"


def fill(text: str, values: dict[str, Any]) -> str:
    """A text with its options; without the lines that name one which is None."""
    lines = []
    for line in text.splitlines():
        names = Text(line).get_identifiers()
        if all(values[name] is not None for name in names):
            lines.append(Text(line).substitute(values))
    return "\n".join(lines) + "\n"


class Certificates:
    """An authority and what it has issued, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        yesterday = datetime.now(UTC) - timedelta(days=1)
        issued = {
            "good": authority.issue_cert(LOOPBACK, "localhost"),
            "expired": authority.issue_cert(LOOPBACK, not_after=yesterday),
            "wrong host": authority.issue_cert("elsewhere.example"),
            "client": authority.issue_cert("ann@example.org"),
        }
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self._authority, self._folder = authority, folder
        for kind, one in issued.items():
            one.private_key_pem.write_to_path(str(self.file(kind, "key")))
            chain = b"".join(blob.bytes() for blob in one.cert_chain_pems)
            self.file(kind, "crt").write_bytes(chain)
            one.private_key_and_cert_chain_pem.write_to_path(str(self.file(kind, "pem")))
        for file in folder.iterdir():
            file.chmod(0o644)

    def file(self, kind: str, suffix: str) -> Path:
        """The key, the chain (crt), or both (pem)."""
        return self._folder / f"{kind.replace(' ', '-')}.{suffix}"

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        """What a client verifies with; with a certificate of its own if it is to have one."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        if client:
            context.load_cert_chain(self.file("client", "crt"), self.file("client", "key"))
        return context


class Running:
    """One instance of a server."""

    def __init__(self, server: Server, options: Options, world: "World") -> None:
        self.server, self.options = server, options
        self.folder = world.new_folder(server.name)
        self._values = world.values(server, options, self.folder)
        (self.folder / "config").write_text(fill(server.config, self._values))
        self.urls = {
            "http": f"http://{LOOPBACK}:{self._values['plain']}",
            "https": f"https://{LOOPBACK}:{self._values['tls']}",
            "h2": f"https://{LOOPBACK}:{self._values['tls']}",
        }
        self.port: int = self._values["plain"]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [self.server.program, *fill(self.server.command, self._values).split()]
        if "@json" in self.server.command:
            command = [self.server.program, str(HERE / "node_server.mjs"), self._values["json"]]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        environment["HOME"] = environment["XDG_CONFIG_HOME"] = str(self.folder)
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],  # gone with us, whatever happens
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        ports = ["plain"] if self.server.kinds_of_proxy else ["plain", "tls"]
        for name in ports if self.server.name != "nghttpd" else ["tls"]:
            self._wait_for(self._values[name])

    def _wait_for(self, port: int) -> None:
        end = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.server.name} does not listen:\n{self.log()}")

    def reload(self) -> None:
        """Have it read its configuration again, gracefully."""
        how = self.server.reload
        assert how is not None
        if isinstance(how, str):
            command = fill(how, self._values).split()
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            assert done.returncode == 0, done.stderr + self.log()
        else:
            self.process.send_signal(how)

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def log(self) -> str:
        """What it said."""
        files = [self.folder / name for name in ("output", "log")]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())[-4000:]


class World:
    """The application, certificates, and every server that a test has asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificates = Certificates(self.new_folder("certificates"))
        self._running: dict[tuple[str, Options], Running] = {}
        self._claims: list[socket.socket] = []
        with socket.create_server((LOOPBACK, 0), backlog=1024) as listener:
            self.application = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
            self._application = subprocess.Popen(
                [sys.executable, str(HERE / "application.py"), str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
        self._files = self.new_folder("files")
        (self._files / "large").write_bytes(bytes(LARGE))
        for number in range(200):
            (self._files / str(number)).write_text(json.dumps([f"/{number}"]))
        self._users = self._folder / "users"
        self._users.write_text(f"{USER}:{_hashed(PASSWORD)}\n")
        self._users.chmod(0o644)

    def new_folder(self, name: str) -> Path:
        """A folder that servers may read which run as another user."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        folder.chmod(0o777)
        return folder

    def server(self, server: Server, **options: Any) -> Running:
        """The instance with these options, started by the first who asks for it."""
        chosen = Options(**options)
        if chosen.client_ca:
            chosen = replace(chosen, client_ca=str(self.certificates.ca))
        if chosen.credentials:
            chosen = replace(chosen, credentials=str(self._users))
        if (key := (server.name, chosen)) not in self._running:
            self._running[key] = Running(server, chosen, self)
        return self._running[key]

    def values(self, server: Server, options: Options, folder: Path) -> dict[str, Any]:
        """What the names in a configuration stand for."""
        kind, ca = options.certificate_kind, options.client_ca
        file = self.certificates.file
        names = [f"TLSv{one}" for one in sorted({options.tls_min, options.tls_max})]
        as_root = os.geteuid() == 0
        tls = f"tls {file(kind, 'crt')} {file(kind, 'key')} {{\n"
        tls += f"protocols tls{options.tls_min} tls{options.tls_max}\n"
        if ca:
            tls += f"client_auth {{\nmode require_and_verify\ntrusted_ca_cert_file {ca}\n}}\n"
        rules = "http_access allow localhost"
        if options.credentials:
            rules = "acl known proxy_auth REQUIRED\nhttp_access allow known"
        values: dict[str, Any] = {
            **asdict(options),
            "dir": folder,
            "config": folder / "config",
            "files": self._files,
            "modules": "/usr/lib/apache2/modules",
            "user": "root" if as_root else "nobody",
            "apache_user": "www-data",
            "application": int(self.application.rpartition(":")[2]),
            "certificate": file(kind, "crt"),
            "key": file(kind, "key"),
            "pem": file(kind, "pem"),
            "idles": f"{options.idle}s",
            "digits": len(str(options.max_body)),
            "max_body_kib": options.max_body // 1024,
            "tls_names": " ".join(names),
            "tls_plus": " ".join(f"+{name}" for name in names),
            "haproxy_tls": f"ssl-min-ver TLSv{options.tls_min} ssl-max-ver TLSv{options.tls_max}"
            + (f" ca-file {ca} verify required" if ca else ""),
            "verify": ca and "require",
            "client_ca_enforced": ca and "enable",
            "caddy_tls": tls + "}",
            "squid_rules": rules + "\nhttp_access deny all",
            "credentials_text": options.credentials and f"{USER} {PASSWORD}",
            "microsocks_credentials": f"-u {USER} -P {PASSWORD}" if options.credentials else "",
        }
        values |= zip(("plain", "tls", "admin"), claimed_ports(3, self._claims), strict=True)
        values["json"] = json.dumps(values, default=str)
        return values

    def seen(self) -> dict[str, int]:
        """How often each POST has arrived at the application, by path."""
        counts: dict[str, int] = httpx.get(f"{self.application}/seen", trust_env=False).json()
        return counts

    def close(self) -> None:
        """End all."""
        for one in self._running.values():
            one.kill()
        for claim in self._claims:
            claim.close()
        assert self._application.stdin is not None
        self._application.stdin.close()
        self._application.wait(10)


def _hashed(password: str) -> str:
    command = ["openssl", "passwd", "-apr1", password]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def claimed_ports(number: int, claims: list[socket.socket]) -> list[int]:
    """Ports of 127.0.0.1 that nobody else will take, as long as the claims are open.

    Below those that the kernel gives away; a claim is the same port of another address. A server
    that listens with SO_REUSEPORT would get half of the connections meant for another one.
    """
    ports: list[int] = []
    for port in range(10_000, 32_000):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            claim = stack.enter_context(socket.socket())
            claim.bind(("127.0.0.2", port))
            socket.create_server((LOOPBACK, port)).close()
            stack.pop_all()
            claims.append(claim)
            ports.append(port)
        if len(ports) == number:
            return ports
    raise RuntimeError("no port is free")


@contextlib.contextmanager
def new_world() -> Iterator[World]:
    """Everything, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="interop-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        world = World(Path(folder))
        try:
            yield world
        finally:
            world.close()


@contextlib.contextmanager
def every(seconds: float, function: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Call a function again and again beside the block, in a thread; yield what it raises."""
    stop, raised = threading.Event(), list[BaseException]()

    def loop() -> None:
        while not stop.wait(seconds):
            try:
                function()
            except BaseException as exc:
                raised.append(exc)
                return

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield raised
    finally:
        stop.set()
        thread.join(10)
