// Every example of the README and of the pages that continue its tour, exactly as it is printed and in the order in which
// a reader pastes it: one terminal, one console and one server for all pages.
//
// The test changes only the port and the database. Blocks that need Docker, a hosting service or a server of their own are
// checked for their syntax. A block of an unknown kind fails, so that no block is left out.

import assert from "node:assert/strict"
import { access, constants, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import os from "node:os"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { Browser } from "./support/browser.mjs"
import { Console } from "./support/console.mjs"
import { DocumentedProxy } from "./support/documented.mjs"
import { freePort } from "./support/herald.mjs"
import { blocksOf, ROOT, TOUR } from "./support/markdown.mjs"
import { kill, run, start, Terminal } from "./support/terminal.mjs"
import { eventually, within } from "./support/wait.mjs"

const BUILD_DEADLINE_MS = 20 * 60_000

const PAGES = await Promise.all(TOUR.map(async page => ({ page, blocks: await blocksOf(page) })))

/** The lines that the page logs when its channels have joined, one for each channel. */
const JOINS = ["joined", "joined in private", "joined, and seen"]

describe("the README's tour, and the pages that continue it", () => {
  let folder, port, browser, terminal, server, page, token, history, audit, connections
  const present = []

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

  /** Runs a block of each kind, and checks what it does. */
  const kinds = {
    "sh server": async code => {
      server = goesOn(code, development())
      const ended = server.ended.then(code => assert.fail(`it ended with ${code}: ${server.complaints}`))
      await Promise.race([isReady(port, BUILD_DEADLINE_MS), ended])
      page = await Console.open((await browser.open(`http://127.0.0.1:${port}/`)).page)
      page.page.on("dialog", dialog => dialog.accept(token))
    },
    // This command runs this very file, so the test only checks that it can be run.
    "sh tests": code => access(path.join(ROOT, code.trim()), constants.X_OK),
    sh: async code => {
      const printed = await terminal.paste(code)
      if (code.includes("herald token")) assert.match(printed.trim(), /^[\w-]+\.[\w-]+\.[\w-]+$/)
      if (code.includes("herald trigger")) assert.match(await logged(), /^to foo-topic: /)
      if (code.includes("/api/admin/audit")) audit = JSON.parse(printed)
      if (code.includes("/connections")) connections = JSON.parse(printed)
      if (code.includes("/history")) {
        history = JSON.parse(printed)
        assert.equal(history.complete, true)
        assert.equal(history.data.at(-1).position, history.position)
      } else if (code.includes("/channels")) {
        const [list, one] = printed.split(/(?<=})(?={"data")/).map(text => JSON.parse(text))
        assert.deepEqual(list.data.map(({ topic, subscribers }) => [topic, subscribers]), [["public:foo-app", 1]])
        assert.equal(one.data.subscribers, 1)
      }
      if (code.includes("idempotency_key")) {
        const [first, again, ...more] = printed.split(/(?<=})(?={)/)
        assert.match(first, /^{"position":"[\w-]{22}:\d+"}$/)
        assert.deepEqual([again, more], [first, []])
        assert.match(await logged(), /^to foo-topic: /)
      }
      if (code.includes("/disconnect")) {
        assert.equal(printed, "{}")
        const rejoined = []
        while (rejoined.length < JOINS.length) rejoined.push(await logged("the channels to join again"))
        assert.deepEqual(rejoined.sort(), JOINS)
      }
      if (/\/api\/admin\/apps|-X PATCH/.test(code)) assert.match(printed, /"slug":"foo-app"/)
    },
    // The page shows the answer to the block before, shortened to one event.
    "json history": code => {
      const shown = JSON.parse(code)
      assert.deepEqual(Object.keys(history), Object.keys(shown))
      const alike = history.data.find(({ payload }) => JSON.stringify(payload) === JSON.stringify(shown.data[0].payload))
      assert.deepEqual({ ...alike, position: "", time: "" }, { ...shown.data[0], position: "", time: "" })
      assert.equal(alike.time.length, shown.data[0].time.length)
    },
    // The page shows the answer to the block before, shortened to one session.
    "json connections": code => {
      const shown = JSON.parse(code)
      assert.deepEqual(Object.keys(connections), Object.keys(shown))
      assert.equal(connections.total, connections.data.length)
      const [session] = connections.data
      assert.deepEqual(Object.keys(session), Object.keys(shown.data[0]))
      const { protocol, transport, since, queue } = shown.data[0]
      assert.deepEqual([session.protocol, session.transport, session.queue], [protocol, transport, queue])
      assert.equal(session.since.length, since.length)
    },
    // The page shows the answer to the block before, which is the entry of the page's own rotation.
    "json audit": code => {
      const shown = JSON.parse(code)
      const comparable = ({ data: [{ id, at, ...entry }] }) => ({ ...entry, id: typeof id, at: at.length })
      assert.equal(audit.data.length, 1)
      assert.deepEqual(comparable(audit), comparable(shown))
    },
    // The block ends with a command that serves; a reader runs it in a terminal of its own.
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
    // The servers of the block share a Redis of the test's own; a reader has one at the usual port.
    "sh nodes": async code => {
      const redis = process.env.HERALD_TEST_REDIS_URL
      assert.ok(redis, "HERALD_TEST_REDIS_URL names the Redis to use; scripts/test sets it")
      const ports = [await freePort(), await freePort()]
      const PATH = `${path.join(ROOT, "target/release")}:${process.env.PATH}`
      const moved = code.replace("redis://127.0.0.1:6379", redis).replace("4001", ports[0]).replace("4002", ports[1])
      const servers = goesOn(moved, { ...development(), PATH, HERALD__ENGINE__PREFIX: `readme-${ports[0]}` })
      for (const port of ports) await isReady(port)
      const login = Buffer.from("pusher_admin_username:pusher_admin_password").toString("base64")
      const asked = { headers: { authorization: `Basic ${login}` } }
      const nodes = () => fetch(`http://127.0.0.1:${ports[1]}/api/admin/nodes`, asked).then(answer => answer.json())
      await eventually(async () => (await nodes()).data.length === 2, "each server to know the other")
      kill(servers)
    },
    "sh docker": async code => {
      await run("bash", ["-n", "-c", code], { cwd: ROOT })
      const compose = await readFile(path.join(ROOT, "docker-compose.yml"), "utf8")
      const [, name, password] = code.match(/^admin=(.*):(.*)$/m) ?? []
      if (name) assert.match(compose, new RegExp(`PUSHER_ADMIN_USERNAME: ${name}\n\\s*PUSHER_ADMIN_PASSWORD: ${password}\n`))
      for (const [, service] of code.matchAll(/docker-compose exec -T (\S+)/g)) assert.match(compose, new RegExp(`^  ${service}:$`, "m"))
    },
    "sh hosting": code => run("bash", ["-n", "-c", code], { cwd: ROOT }),
    "sh by-hand": code => run("bash", ["-n", "-c", code], { cwd: ROOT }),
    "js browser": async code => {
      await page.paste(code)
      if (code.includes(".join()")) assert.ok(JOINS.includes(await logged("the join")))
      if (code.includes('push("msg"')) assert.match(await logged("the pushed event"), /^in private: /)
      if (code.includes("Presence")) await logsWhoIsPresent("here: Ada")
    },
    ruby: async code => {
      assert.equal((await script("ruby", code, "rb")).trim(), "200")
      assert.match(await logged(), /^to foo-topic: /)
    },
    "ruby rails": async code => {
      token = (await script("ruby", code, "rb")).trim()
    },
    js: async code => {
      assert.equal((await script("node", code, "mjs")).trim(), "200")
      assert.match(await logged(), /^to foo-topic: /)
    },
    python: async code => {
      assert.equal((await script("python3", code, "py")).trim(), "200")
      assert.match(await logged(), /^to everyone: /)
    },
    nginx: () => isServed("nginx"),
    haproxy: () => isServed("haproxy"),
  }

  let rotations = 0
  for (const { page: name, blocks } of PAGES) {
    describe(name, () => {
      assert.ok(blocks.length > 0, `${name} has no examples`)
      for (const { kind, code } of blocks) {
        test(`${kind}: ${code.trim().split("\n")[0]}`, async () => {
          assert.ok(kinds[kind], `no test knows what to do with a block of kind "${kind}"`)
          await kinds[kind](code.replaceAll("127.0.0.1:4000", `127.0.0.1:${port}`))
          if (kind === "sh" && /\brotate\b/.test(code)) rotations += 1
          // A block must not end the joins of an earlier block. But with the second rotation the pair that signed the
          // page's token ends, as soon as the server notices that a command has changed the database.
          if (rotations < 2) await page?.keepsItsJoins()
        })
      }
    })
  }

  /** The next line that the console logs. Lines about who is present come at any time; they go to `present`. */
  async function logged(what) {
    for (;;) {
      const line = await page.heard.take(what)
      if (!line.startsWith("here:")) return line
      present.push(line)
    }
  }

  async function logsWhoIsPresent(line) {
    while (!present.includes(line)) {
      const next = await page.heard.take("who is present")
      assert.match(next, /^here:/)
      present.push(next)
    }
  }

  function development() {
    const database = `sqlite://${path.join(folder, "data", "herald.db")}`
    return { PORT: String(port), DATABASE_URL: database, SECRET_KEY_BASE: "only for the time of this test, nothing signs with it" }
  }

  /** Waits until the server is ready behind this proxy as documented. `proxies.test.mjs` tests what else the proxy does. */
  async function isServed(name) {
    const proxy = await DocumentedProxy[name]({ host: `127.0.0.1:${port}` })
    await proxy.close()
  }

  /** Starts a block that keeps running, in a terminal of its own. */
  function goesOn(code, env) {
    return start("bash", ["-c", `set -euo pipefail\n${code}`], { cwd: ROOT, env })
  }

  async function isReady(port, deadlineMs) {
    const answers = () => fetch(`http://127.0.0.1:${port}/ready`).then(response => response.ok, () => false)
    await eventually(answers, "the server to be ready", deadlineMs)
  }

  /** Saves a block as a file, runs it, and returns its output. */
  async function script(program, code, suffix) {
    const file = path.join(folder, `block.${suffix}`)
    await writeFile(file, code)
    return run(program, [file], { cwd: ROOT, env: development() })
  }
})
