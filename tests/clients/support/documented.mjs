// nginx and HAProxy as docs/operating.md configures them: its blocks, with other ports, files and servers.

import { execFile, spawn } from "node:child_process"
import { rmSync } from "node:fs"
import { chmod, chown, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { promisify } from "node:util"
import { freePort } from "./herald.mjs"
import { blocksOf } from "./markdown.mjs"
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
  static nginx(upstream, edit) {
    return start("nginx", upstream, edit, folder => ({
      config: block => nginxConfig(folder, block),
      // nginx runs as a single process, so that none remains if the test ends early.
      words: ["-p", folder, "-c", path.join(folder, "config"), "-e", "stderr", "-g", "daemon off; master_process off;"],
    }))
  }

  /** Starts HAProxy; `edit` may change the documented configuration. */
  static haproxy(upstream, edit) {
    return start("haproxy", upstream, edit, folder => ({
      config: block => `global\n  maxconn 500\n\n${block}`,
      words: ["-db", "-f", path.join(folder, "config")],
    }))
  }

  constructor(folder, port, certificate, child) {
    Object.assign(this, { folder, port, certificate, child, complaints: "", end: null })
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

  get scheme() {
    return "wss"
  }

  get origin() {
    return `https://${this.host}`
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

async function start(program, upstream, edit = block => block, how) {
  const folder = await mkdtemp(path.join(os.tmpdir(), `herald-${program}-`))
  const port = await freePort()
  const { config, words } = how(folder)
  const block = edit(await documented(program, folder, port, upstream))
  await writeFile(path.join(folder, "config"), config(block))
  const certificate = await certify(folder)
  const child = spawn(program, words, { cwd: folder, env: { PATH }, stdio: ["ignore", "ignore", "pipe"], ...(await rights(folder)) })
  const proxy = new DocumentedProxy(folder, port, certificate, child)
  await eventually(() => proxy.isReady(), `${program} to be ready`)
  return proxy
}

/** The documented configuration of this proxy, in front of `upstream`, with a port and files of its own. */
async function documented(program, folder, port, upstream) {
  const blocks = (await blocksOf(PAGE)).filter(({ kind }) => kind === program)
  if (blocks.length !== 1) throw new Error(`${PAGE} has ${blocks.length} blocks for ${program}`)
  const listens = { nginx: ["listen 443", `listen 127.0.0.1:${port}`], haproxy: ["bind :443", `bind 127.0.0.1:${port}`] }
  const changes = [listens[program], ["127.0.0.1:4000", upstream.host], ["/etc/ssl/", `${folder}/`]]
  return changes.reduce((text, change) => replaced(text, ...change), blocks[0].code)
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
