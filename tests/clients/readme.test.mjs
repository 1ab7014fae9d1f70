// Every command in the README, as it stands there, in the order in which a reader pastes it, in one sitting: one terminal,
// one console, one server.
//
// Only the port is another one, and the database. What needs Docker or a hosting service is marked so in the README and
// checked for its syntax; a block of a kind that is not known here fails, so nothing slips in unrun.

import assert from "node:assert/strict"
import { access, constants, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { Browser } from "./support/browser.mjs"
import { Console } from "./support/console.mjs"
import { DocumentedProxy } from "./support/documented.mjs"
import { freePort } from "./support/herald.mjs"
import { blocksOf, ROOT } from "./support/markdown.mjs"
import { kill, run, start, Terminal } from "./support/terminal.mjs"
import { eventually, within } from "./support/wait.mjs"

const BUILD_DEADLINE_MS = 20 * 60_000

const BLOCKS = await blocksOf("README.md")

describe("the README", () => {
  let folder, port, browser, terminal, server, page, token

  before(async () => {
    folder = await mkdtemp(path.join(os.tmpdir(), "herald-readme-"))
    port = await freePort()
    browser = await Browser.launch()
    terminal = new Terminal({ cwd: ROOT, folder, env: development() })
  })
  after(async () => {
    await browser?.close()
    terminal?.close()
    if (server) kill(server)
    await rm(folder, { recursive: true, force: true })
  })

  /** What a block of each kind is put through. */
  const kinds = {
    "sh server": async code => {
      server = goesOn(code, development())
      await isReady(port, BUILD_DEADLINE_MS)
      page = await Console.open((await browser.open(`http://127.0.0.1:${port}/`)).page)
      page.page.on("dialog", dialog => dialog.accept(token))
    },
    // It is what runs this very file; that it is there and can be run is left to show.
    "sh tests": code => access(path.join(ROOT, code.trim()), constants.X_OK),
    sh: async code => {
      const printed = await terminal.paste(code)
      if (code.includes("herald token")) assert.match(printed.trim(), /^[\w-]+\.[\w-]+\.[\w-]+$/)
      if (code.includes("herald trigger")) assert.match(await page.heard.take(), /^to foo-topic: /)
      if (code.includes("/channels")) {
        const [list, one] = printed.split(/(?<=})(?={"data")/).map(text => JSON.parse(text))
        assert.deepEqual(list.data.map(({ topic, subscribers }) => [topic, subscribers]), [["public:foo-app", 1]])
        assert.equal(one.data.subscribers, 1)
      }
      if (code.includes("/disconnect")) {
        assert.equal(printed, "{}")
        const joined = [await page.heard.take("a rejoin"), await page.heard.take("another rejoin")]
        assert.deepEqual(joined.sort(), ["joined", "joined in private"])
      }
      if (code.includes("/api/admin/apps")) assert.match(printed, /"slug":"foo-app"/)
    },
    // It ends with the server, which a reader starts in a terminal of its own.
    "sh production": async code => {
      const database = process.env.HERALD_TEST_POSTGRES_URL
      assert.ok(database, "HERALD_TEST_POSTGRES_URL names the PostgreSQL to use; scripts/test sets it")
      const free = await freePort()
      const PATH = `${path.join(ROOT, "target/release")}:${process.env.PATH}`
      const herald = goesOn(code.replace(/(?<=DATABASE_URL=)\S+/, database), { PORT: String(free), PATH })
      await isReady(free)
      kill(herald, "SIGTERM")
      await within(herald.ended, "the production server to end")
    },
    "sh docker": async code => {
      await run("bash", ["-n", "-c", code], { cwd: ROOT })
      const compose = await readFile(path.join(ROOT, "docker-compose.yml"), "utf8")
      const [, name, password] = code.match(/^admin=(.*):(.*)$/m) ?? []
      if (name) assert.match(compose, new RegExp(`PUSHER_ADMIN_USERNAME: ${name}\n\\s*PUSHER_ADMIN_PASSWORD: ${password}\n`))
      for (const [, service] of code.matchAll(/docker-compose exec -T (\S+)/g)) assert.match(compose, new RegExp(`^  ${service}:$`, "m"))
    },
    "sh hosting": code => run("bash", ["-n", "-c", code], { cwd: ROOT }),
    "js browser": async code => {
      await page.paste(code)
      assert.match(await page.heard.take("the join"), /^joined/)
    },
    ruby: async code => {
      assert.equal((await script("ruby", code, "rb")).trim(), "200")
      assert.match(await page.heard.take(), /^to foo-topic: /)
    },
    "ruby rails": async code => {
      token = (await script("ruby", code, "rb")).trim()
    },
    js: async code => {
      assert.equal((await script("node", code, "mjs")).trim(), "200")
      assert.match(await page.heard.take(), /^to foo-topic: /)
    },
    python: async code => {
      assert.equal((await script("python3", code, "py")).trim(), "200")
      assert.match(await page.heard.take(), /^to everyone: /)
    },
    // No commands, but configurations: `proxies.test.mjs` runs both. That it names them is left to show.
    nginx: () => assert.equal(typeof DocumentedProxy.nginx, "function"),
    haproxy: () => assert.equal(typeof DocumentedProxy.haproxy, "function"),
  }

  assert.ok(BLOCKS.length >= 15, "the blocks were found")
  for (const { kind, code } of BLOCKS) {
    test(`${kind}: ${code.trim().split("\n")[0]}`, async () => {
      assert.ok(kinds[kind], `no test knows what to do with a block of kind "${kind}"`)
      await kinds[kind](code.replaceAll("127.0.0.1:4000", `127.0.0.1:${port}`))
      // No block may take from the reader what an earlier one gave.
      await page?.keepsItsJoins()
    })
  }

  function development() {
    const database = `sqlite://${path.join(folder, "data", "herald.db")}`
    return { PORT: String(port), DATABASE_URL: database, SECRET_KEY_BASE: "only for the time of this test, nothing signs with it" }
  }

  /** Starts a block that goes on, in a terminal of its own. */
  function goesOn(code, env) {
    return start("bash", ["-c", `set -euo pipefail\n${code}`], { cwd: ROOT, env })
  }

  async function isReady(port, deadlineMs) {
    const answers = () => fetch(`http://127.0.0.1:${port}/ready`).then(response => response.ok, () => false)
    await eventually(answers, "the server to be ready", deadlineMs)
  }

  /** Runs a block in a file of its own, and returns what it prints. */
  async function script(program, code, suffix) {
    const file = path.join(folder, `block.${suffix}`)
    await writeFile(file, code)
    return run(program, [file], { cwd: ROOT, env: development() })
  }
})
