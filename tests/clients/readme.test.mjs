// Every command in the README, as it stands there, in the order in which a reader pastes it.
//
// Only the port is another one, and the database. What needs Docker or a hosting service is marked so in the README and
// checked for its syntax; a block of a kind that is not known here fails, so nothing slips in unrun.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { access, constants, mkdtemp, rm, writeFile } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { Browser } from "./support/browser.mjs"
import { freePort } from "./support/herald.mjs"
import { blocksOf, ROOT } from "./support/markdown.mjs"
import { eventually, Inbox, within } from "./support/wait.mjs"

const BUILD_DEADLINE_MS = 20 * 60_000
const COMMAND_DEADLINE_MS = 30_000

const BLOCKS = await blocksOf("README.md")

describe("the README", () => {
  let folder, port, browser, page, repl, token
  const started = new Set()
  process.on("exit", () => started.forEach(child => kill(child)))
  const heard = new Inbox("the console of the page")

  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "herald-readme-"))
    port = await freePort()
    browser = await Browser.launch()
  })
  after(async () => {
    await browser?.close()
    started.forEach(child => kill(child))
    await rm(folder, { recursive: true, force: true })
  })

  /** What a block of each kind is put through. */
  const kinds = {
    "sh server": async code => {
      start(code, port, development())
      await isReady(port, BUILD_DEADLINE_MS)
      page = (await browser.open(`http://127.0.0.1:${port}/`)).page
      page.on("console", message => heard.put(message.text()))
      repl = await page.context().newCDPSession(page)
    },
    // It is what runs this very file; that it is there and can be run is left to show.
    "sh tests": code => access(path.join(ROOT, code.trim()), constants.X_OK),
    sh: async code => {
      const printed = await succeeds("bash", `set -euo pipefail\n${code}`, "sh")
      if (code.includes("herald token")) assert.match(printed.trim(), /^[\w-]+\.[\w-]+\.[\w-]+$/)
      if (code.includes("herald trigger")) assert.match(await heard.take(), /^to foo-topic: /)
      if (code.includes("/channels")) {
        const [list, one] = printed.split(/(?<=})(?={"data")/).map(text => JSON.parse(text))
        assert.deepEqual(list.data.map(({ topic, subscribers }) => [topic, subscribers]), [["public:foo-app", 1]])
        assert.equal(one.data.subscribers, 1)
      }
      if (code.includes("/disconnect")) {
        assert.equal(printed, "{}")
        const joined = [await heard.take("a rejoin"), await heard.take("another rejoin")]
        assert.deepEqual(joined.sort(), ["joined", "joined in private"])
      }
      if (code.includes("/api/admin/apps")) assert.match(printed, /"slug":"foo-app"/)
    },
    "sh production": async code => {
      const database = process.env.HERALD_TEST_POSTGRES_URL
      assert.ok(database, "HERALD_TEST_POSTGRES_URL names the PostgreSQL to use; scripts/test sets it")
      const free = await freePort()
      const herald = start(code.replace(/(?<=DATABASE_URL=)\S+/, database), free, { PORT: String(free) })
      await isReady(free)
      kill(herald, "SIGTERM")
      await within(herald.ended, "the production server to end")
    },
    "sh docker": code => parses(code),
    "sh hosting": code => parses(code),
    // As in the browser's console: names stay, and `await` works at the top.
    "js browser": async code => {
      const expression = code.includes("guardian_token") ? `var token = ${JSON.stringify(token)}\n${code}` : code
      const { exceptionDetails } = await repl.send("Runtime.evaluate", { expression, replMode: true, awaitPromise: true })
      assert.equal(exceptionDetails, undefined)
      assert.match(await heard.take("the join"), /^joined/)
    },
    ruby: async code => {
      assert.equal((await succeeds("ruby", code, "rb")).trim(), "200")
      assert.match(await heard.take(), /^to foo-topic: /)
    },
    "ruby rails": async code => {
      token = (await succeeds("ruby", code, "rb")).trim()
    },
    js: async code => {
      assert.equal((await succeeds("node", code, "mjs")).trim(), "200")
      assert.match(await heard.take(), /^to foo-topic: /)
    },
    python: async code => {
      assert.equal((await succeeds("python3", code, "py")).trim(), "200")
      assert.match(await heard.take(), /^to everyone: /)
    },
    // No command: a proxy's configuration, for a host with a certificate.
    nginx: code => assert.equal(code.split("{").length, code.split("}").length),
  }

  assert.ok(BLOCKS.length >= 15, "the blocks were found")
  for (const { kind, code } of BLOCKS) {
    test(`${kind}: ${code.trim().split("\n")[0]}`, async () => {
      assert.ok(kinds[kind], `no test knows what to do with a block of kind "${kind}"`)
      await kinds[kind](code.replaceAll("127.0.0.1:4000", `127.0.0.1:${port}`))
    })
  }

  function development() {
    const database = `sqlite://${path.join(folder, "data", "herald.db")}`
    return { PORT: String(port), DATABASE_URL: database, SECRET_KEY_BASE: "only for the time of this test, nothing signs with it" }
  }

  /** Starts a command that goes on, in a process group of its own. */
  function start(code, port, env) {
    const script = `set -euo pipefail\n${code}`
    const child = spawn("bash", ["-c", script], { cwd: ROOT, env: { ...process.env, ...env }, detached: true, stdio: ["ignore", "ignore", "pipe"] })
    child.complaints = ""
    child.stderr.setEncoding("utf8").on("data", text => (child.complaints = (child.complaints + text).slice(-4000)))
    child.ended = new Promise(resolve => child.on("exit", resolve))
    started.add(child)
    return child
  }

  async function isReady(port, deadlineMs) {
    const answers = () => fetch(`http://127.0.0.1:${port}/ready`).then(response => response.ok, () => false)
    await eventually(answers, "the server to be ready", deadlineMs)
  }

  /** Runs a script to its end in the repository, and returns what it prints. */
  async function succeeds(program, code, suffix) {
    const file = path.join(folder, `block.${suffix}`)
    await writeFile(file, code)
    const env = { ...process.env, ...development() }
    const child = spawn(program, [file], { cwd: ROOT, env, stdio: ["ignore", "pipe", "pipe"] })
    let printed = ""
    let complained = ""
    child.stdout.setEncoding("utf8").on("data", text => (printed += text))
    child.stderr.setEncoding("utf8").on("data", text => (complained += text))
    const status = await within(new Promise(resolve => child.on("close", resolve)), code, COMMAND_DEADLINE_MS)
    assert.equal(status, 0, `${code}\n${complained}`)
    return printed
  }

  function parses(code) {
    return succeeds("bash", `bash -n <<'BLOCK'\n${code}BLOCK\n`, "sh")
  }
})

function kill(child, signal = "SIGKILL") {
  try {
    process.kill(-child.pid, signal)
  } catch {
    // It has ended already.
  }
}
