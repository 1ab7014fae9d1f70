// A running Herald for a test file: the built binary, with its own folder and port.

import { spawn } from "node:child_process"
import { randomInt } from "node:crypto"
import { rmSync } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import net from "node:net"
import os from "node:os"
import path from "node:path"
import { fileURLToPath } from "node:url"
import { DEADLINE_MS, eventually, within } from "./wait.mjs"

const HERE = path.dirname(fileURLToPath(import.meta.url))
const STDERR_CHARS_MAX = 4000
const START_DEADLINE_MS = 30_000

export const BINARY = path.resolve(process.env.HERALD_BIN ?? path.join(HERE, "../../../target/debug/herald"))

/** The administrator and the app of the development environment. */
export const ADMIN = { username: "pusher_admin_username", password: "pusher_admin_password" }
export const TEST_APP = { slug: "test-app", key: "test-app-fake-key", secret: "test-app-fake-secret" }

const running = new Set()
const folders = new Set()
process.on("exit", () => {
  running.forEach(child => child.kill("SIGKILL"))
  folders.forEach(folder => rmSync(folder, { recursive: true, force: true }))
})
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1))

export class Herald {
  /** Starts a server and waits until it is ready; `env` adds settings. */
  static async start(env = {}) {
    const folder = await mkdtemp(path.join(os.tmpdir(), "herald-clients-"))
    folders.add(folder)
    const herald = new Herald(folder, await freePort(), env)
    await herald.start()
    return herald
  }

  constructor(folder, port, env) {
    Object.assign(this, { folder, port, env, child: null, end: null, stderr: "" })
  }

  get host() {
    return `127.0.0.1:${this.port}`
  }

  get origin() {
    return `http://${this.host}`
  }

  /** Starts the server, or restarts it with the same folder, database and port. */
  async start() {
    this.child = spawn(BINARY, [], { cwd: this.folder, env: this.environment(), stdio: ["ignore", "ignore", "pipe"] })
    running.add(this.child)
    this.end = null
    this.ended = new Promise(resolve => {
      const ended = how => resolve((this.end = how))
      this.child.on("error", error => ended(`it could not be started: ${error.message}`))
      this.child.on("exit", (code, signal) => ended(`it ended with ${signal ?? code}`))
    })
    this.child.stderr.setEncoding("utf8").on("data", text => {
      this.stderr = (this.stderr + text).slice(-STDERR_CHARS_MAX)
    })
    await eventually(() => this.isReady(), "the server to be ready", START_DEADLINE_MS)
  }

  /** Stops the server with `signal`, and waits until it has ended. */
  async stop(signal = "SIGTERM") {
    this.child.kill(signal)
    await within(this.ended, `${signal} to end the server`)
    running.delete(this.child)
  }

  /** Ends the server, and removes its folder. */
  async close() {
    this.child.kill("SIGKILL")
    await within(this.ended, "the server to end")
    running.delete(this.child)
    await rm(this.folder, { recursive: true, force: true })
    folders.delete(this.folder)
  }

  /** Runs a subcommand of the same binary on the same database, and returns its output. */
  command(...words) {
    return this.printed(BINARY, words)
  }

  /** Runs a line as in a terminal in which `herald` is the same binary, and returns its output. */
  typed(line) {
    return this.printed("bash", ["-euo", "pipefail", "-c", `herald() { ${quotedForBash(BINARY)} "$@"; }\n${line}`])
  }

  async printed(program, words) {
    const child = spawn(program, words, { cwd: this.folder, env: this.environment(), stdio: ["ignore", "pipe", "pipe"] })
    running.add(child)
    let printed = ""
    let complained = ""
    child.stdout.setEncoding("utf8").on("data", text => (printed += text))
    child.stderr.setEncoding("utf8").on("data", text => (complained += text))
    const code = await within(new Promise(resolve => child.on("close", resolve)), `${program} ${words[0]}`)
    running.delete(child)
    if (code !== 0) throw new Error(`${program} ${words.join(" ")} ended with ${code}: ${complained}`)
    return printed.trim()
  }

  /** Creates an app through the admin API and returns it, key and secret included. */
  async createApp(fields) {
    return (await this.ask("POST", "/api/admin/apps", ADMIN, { app: fields }, 201)).data
  }

  /** Changes an app through the admin API. */
  async updateApp(slug, fields) {
    await this.ask("PATCH", `/api/admin/apps/${slug}`, ADMIN, { app: fields })
  }

  /** Deletes an app through the admin API. */
  deleteApp(slug) {
    return this.ask("DELETE", `/api/admin/apps/${slug}`, ADMIN, undefined, 204)
  }

  /** Triggers an event as the first article does from Rails; `fields.payload` is an object. */
  async trigger(fields, app = TEST_APP) {
    await this.triggerRaw({ ...fields, payload: JSON.stringify(fields.payload ?? {}) }, app)
  }

  /** Triggers an event whose payload is already text, and returns the answer. */
  triggerRaw(fields, app = TEST_APP) {
    const form = { event: "msg", scope: "public", ...fields }
    return this.ask("POST", `/api/apps/${app.slug}/events`, login(app), new URLSearchParams(form))
  }

  /** Ends joins of an app: those with a token of one `sub`, or those of one `topic`. */
  async disconnect(whose, app = TEST_APP) {
    await this.ask("POST", `/api/apps/${app.slug}/disconnect`, login(app), whose)
  }

  /** Waits until a channel of the app has `count` subscribers. */
  async hasSubscribers(count, { scope, channel }, app = TEST_APP) {
    const where = `/api/apps/${app.slug}/channels/${scope}/${encodeURIComponent(channel)}`
    const asked = async () => (await this.ask("GET", where, login(app))).data.subscribers
    await eventually(async () => (await asked()) === count, `${count} subscribers of ${channel}`)
  }

  /** Calls the HTTP API with a form, or with an object as JSON; fails unless the answer has the `expected` status. */
  async ask(method, where, { username, password }, fields, expected = 200) {
    const isForm = fields instanceof URLSearchParams
    const headers = { authorization: basic(username, password), ...(fields && !isForm && { "content-type": "application/json" }) }
    const body = isForm ? fields : JSON.stringify(fields)
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const response = await fetch(this.origin + where, { method, body, headers, signal })
    const text = await response.text()
    if (response.status !== expected) throw new Error(`${method} ${where} answered ${response.status}: ${text}`)
    return text && JSON.parse(text)
  }

  environment() {
    return {
      PATH: process.env.PATH,
      HERALD_ENV: "development",
      PORT: String(this.port),
      DATABASE_URL: `sqlite://${path.join(this.folder, "herald.db")}`,
      ...this.env,
    }
  }

  async isReady() {
    if (this.end) throw new Error(`${BINARY} did not start: ${this.end}\n${this.stderr}`)
    return fetch(`${this.origin}/ready`).then(response => response.ok, () => false)
  }
}

function quotedForBash(word) {
  return `'${word.replaceAll("'", `'\\''`)}'`
}

function login({ key, secret }) {
  return { username: key, password: secret }
}

export function basic(user, password) {
  return `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`
}

/**
 * A port on which nothing listens. The system gives ports from 32768 on to connections, so one of those may be taken before
 * a server listens on it, or while a server restarts.
 */
export async function freePort() {
  for (;;) {
    const port = randomInt(11_000, 32_768)
    const probe = net.createServer()
    const isFree = await new Promise(resolve => probe.on("error", () => resolve(false)).listen(port, "127.0.0.1", () => resolve(true)))
    if (!isFree) continue
    await new Promise(resolve => probe.close(resolve))
    return port
  }
}
