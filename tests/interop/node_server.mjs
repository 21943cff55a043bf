// A server by node's http, https and http2, that hands everything on to the application.
// node node_server.mjs '{"application": 1, "plain": 2, "tls": 3, ...}'; SIGHUP: take leave.
import fs from "node:fs";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";

const options = JSON.parse(process.argv[2]);
const host = "127.0.0.1";
const sessions = new Set();

function forward(request, response) {
  if (Number(request.headers["content-length"] ?? 0) > options.max_body) {
    response.writeHead(413, { "content-length": "0" });
    response.end();
    return;
  }
  const { method, url: path } = request;
  const fields = Object.entries(request.headers).filter(
    ([name]) => !name.startsWith(":") && name !== "connection",
  );
  const upstream = http.request(
    { host, port: options.application, agent: false, method, path,
      headers: Object.fromEntries(fields) },
    (answer) => {
      const { connection, "keep-alive": _, "transfer-encoding": __, ...rest } = answer.headers;
      response.writeHead(answer.statusCode, rest);
      answer.pipe(response);
    },
  );
  upstream.on("error", () => response.destroy?.());
  response.on("close", () => upstream.destroy());
  request.on("error", () => upstream.destroy());
  request.pipe(upstream);
}

function upgrade(request, socket, head) {
  const upstream = net.connect(options.application, host, () => {
    let text = `${request.method} ${request.url} HTTP/1.1\r\n`;
    for (let i = 0; i < request.rawHeaders.length; i += 2)
      text += `${request.rawHeaders[i]}: ${request.rawHeaders[i + 1]}\r\n`;
    upstream.write(text + "\r\n");
    upstream.write(head);
    upstream.pipe(socket).pipe(upstream);
  });
  for (const one of [socket, upstream]) one.on("error", () => { socket.destroy(); upstream.destroy(); });
}

const plain = http.createServer(forward);
const tls = http2.createSecureServer(
  {
    allowHTTP1: true,
    key: fs.readFileSync(options.key),
    cert: fs.readFileSync(options.certificate),
    ca: options.client_ca ? [fs.readFileSync(options.client_ca)] : undefined,
    requestCert: Boolean(options.client_ca),
    rejectUnauthorized: Boolean(options.client_ca),
    minVersion: `TLSv${options.tls_min}`,
    maxVersion: `TLSv${options.tls_max}`,
    settings: { maxConcurrentStreams: options.streams },
  },
  forward,
);
for (const server of [plain, tls]) {
  server.keepAliveTimeout = options.idle * 1000;
  server.maxRequestsPerSocket = options.requests;
  server.on("upgrade", upgrade);
}
tls.on("session", (session) => {
  sessions.add(session);
  session.setTimeout(options.idle * 1000, () => session.close());
  session.on("close", () => sessions.delete(session));
  session.on("error", () => {});
});
process.on("SIGHUP", () => {
  for (const session of sessions) session.close(); // GOAWAY, and what has begun is answered
  plain.closeIdleConnections();
});
process.stdin.on("end", () => process.exit()).resume();
plain.listen(options.plain, host, 1024);
tls.listen(options.tls, host, 1024);
