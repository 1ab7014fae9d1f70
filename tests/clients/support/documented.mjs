// nginx and HAProxy as docs/operating.md and the files in ops/ configure them, with other ports, files and servers.

import { execFile, spawn } from "node:child_process"
import { rmSync } from "node:fs"
import { chmod, chown, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { promisify } from "node:util"
import { freePort } from "./herald.mjs"
import { blocksOf, ROOT } from "./markdown.mjs"
import { eventually, within } from "./wait.mjs"

/** The page that configures proxies. */
export const PAGE = "docs/operating.md"

/** Debian's account without rights. The proxies run under it if the tests run as root. */
const NOBODY = 65534

/** The `PATH` with the folders in which Debian installs servers. */
const PATH = `${process.env.PATH}:/usr/sbin:/usr/local/sbin`

const COMPLAINTS_CHARS_MAX = 4000

// Each proxy has a certificate of its own, which no authority has signed.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"

const running = new Set()
process.on("exit", () => running.forEach(proxy => proxy.kill()))

/** One of the documented proxies in front of a server, on a port and in a folder of its own. */
export class DocumentedProxy {
  /** Starts nginx; `edit` may change the documented configuration. */
  static async nginx(upstream, edit = block => block) {
    return start("nginx", "https", edit(await documented("nginx", upstream)))
  }

  /** Starts HAProxy; `edit` may change the documented configuration. */
  static async haproxy(upstream, edit = block => block) {
    return start("haproxy", "https", `global\n  maxconn 500\n\n${edit(await documented("haproxy", upstream))}`)
  }

  /** Starts one of them in front of two servers, as its file in ops/ says. */
  static async cluster(program, servers) {
    const [file, scheme] = { nginx: ["nginx/cluster.conf", "http"], haproxy: ["haproxy/cluster.cfg", "https"] }[program]
    let text = await readFile(path.join(ROOT, "ops", file), "utf8")
    servers.forEach(({ host }, nth) => (text = replaced(text, `herald-${nth + 1}:4000`, host)))
    // HAProxy does not start if it may not open this number of files.
    if (program === "haproxy") text = replaced(text, "maxconn 100000", "maxconn 500")
    return start(program, scheme, text)
  }

  constructor(folder, port, scheme, certificate, child) {
    Object.assign(this, { folder, port, certificate, child, complaints: "", end: null })
    this.origin = `${scheme}://${this.host}`
    this.scheme = scheme.replace("http", "ws")
    running.add(this)
    child.stderr.setEncoding("utf8").on("data", text => {
      this.complaints = (this.complaints + text).slice(-COMPLAINTS_CHARS_MAX)
    })
    this.ended = new Promise(resolve => {
      const ended = how => resolve((this.end = how))
      child.on("error", error => ended(`it could not be started (it is a Debian package): ${error.message}`))
      child.on("exit", (code, signal) => ended(`it ended with ${signal ?? code}`))
    })
  }

  get host() {
    return `127.0.0.1:${this.port}`
  }

  async isReady() {
    if (this.end) throw new Error(`${this.child.spawnfile}: ${this.end}\n${this.complaints}`)
    return fetch(`${this.origin}/ready`).then(response => response.ok, () => false)
  }

  kill() {
    this.child.kill("SIGKILL")
    rmSync(this.folder, { recursive: true, force: true })
  }

  async close() {
    this.child.kill("SIGKILL")
    await within(this.ended, "the proxy to end")
    running.delete(this)
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** Starts a proxy with this configuration, on a port and with a certificate of its own. */
async function start(program, scheme, text) {
  const folder = await mkdtemp(path.join(os.tmpdir(), `herald-${program}-`))
  const [port, file] = [await freePort(), path.join(folder, "config")]
  const [listen, words] = {
    // nginx runs as a single process, so that none remains if the test ends early.
    nginx: ["listen ", ["-p", folder, "-c", file, "-e", "stderr", "-g", "daemon off; master_process off;"]],
    haproxy: ["bind ", ["-db", "-f", file]],
  }[program]
  const usual = scheme === "https" ? 443 : 80
  const own = replaced(text, `${listen}${program === "haproxy" ? ":" : ""}${usual}`, `${listen}127.0.0.1:${port}`)
  const block = own.replaceAll("/etc/ssl/", `${folder}/`)
  await writeFile(file, program === "nginx" ? nginxConfig(folder, block) : block)
  const certificate = await certify(folder)
  const child = spawn(program, words, { cwd: folder, env: { PATH }, stdio: ["ignore", "ignore", "pipe"], ...(await rights(folder)) })
  const proxy = new DocumentedProxy(folder, port, scheme, certificate, child)
  await eventually(() => proxy.isReady(), `${program} to be ready`)
  return proxy
}

/** The documented configuration of this proxy, in front of `upstream`. */
async function documented(program, upstream) {
  const blocks = (await blocksOf(PAGE)).filter(({ kind }) => kind === program)
  if (blocks.length !== 1) throw new Error(`${PAGE} has ${blocks.length} blocks for ${program}`)
  return replaced(blocks[0].code, "127.0.0.1:4000", upstream.host)
}

/** `text` with every `from` replaced; fails if there is none. */
export function replaced(text, from, to) {
  if (!text.includes(from)) throw new Error(`the documented configuration has no "${from}":\n${text}`)
  return text.replaceAll(from, to)
}

function nginxConfig(folder, block) {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(kind => `  ${kind}_temp_path ${folder}/${kind};`)
  return [
    `pid ${folder}/pid;`,
    "error_log stderr warn;",
    "events { worker_connections 512; }",
    "http {",
    "  access_log off;",
    ...temporary,
    block,
    "}",
  ].join("\n")
}

/** Makes a certificate for the test. HAProxy needs the key in the same file, which nginx permits. */
async function certify(folder) {
  const [key, certificate] = ["herald.key", "herald.pem"].map(name => path.join(folder, name))
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
  const names = ["-subj", "/CN=herald test", "-addext", "subjectAltName=IP:127.0.0.1"]
  await promisify(execFile)("openssl", ["req", "-x509", ...curve, ...names, "-days", "1", "-keyout", key, "-out", certificate])
  const pem = await readFile(certificate, "utf8")
  await writeFile(certificate, pem + (await readFile(key, "utf8")))
  return pem
}

/** If the test runs as root, gives the folder to an account without rights, and returns its ids. */
async function rights(folder) {
  if (process.getuid() !== 0) return {}
  await chmod(folder, 0o700)
  const files = (await readdir(folder)).map(name => path.join(folder, name))
  for (const file of [folder, ...files]) await chown(file, NOBODY, NOBODY)
  return { uid: NOBODY, gid: NOBODY }
}
