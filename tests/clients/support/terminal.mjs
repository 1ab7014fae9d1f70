// A terminal into which a reader pastes one block of a page after another.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { writeFile } from "node:fs/promises"
import path from "node:path"
import { within } from "./wait.mjs"

const COMMAND_DEADLINE_MS = 30_000
const STDERR_CHARS_MAX = 4000

/** The processes that were started here and may still run. */
const started = new Set()
process.on("exit", () => started.forEach(child => kill(child)))

/** A shell. Later blocks see what earlier blocks have defined. */
export class Terminal {
  /** Opens a shell in the folder `cwd`; `folder` holds the pasted text. */
  constructor({ cwd, folder, env }) {
    this.file = path.join(folder, "pasted.sh")
    this.shell = start("bash", ["--norc", "--noprofile"], { cwd, env, stdio: ["pipe", "pipe", "pipe"] })
    this.printed = ""
    this.shell.stdout.setEncoding("utf8").on("data", text => {
      this.printed += text
      this.look?.()
    })
    this.blocks = 0
  }

  /** Pastes a block, and returns its output; each of its commands must succeed. */
  async paste(code) {
    this.printed = ""
    this.shell.complaints = ""
    await writeFile(this.file, `${code}\n`)
    // The shell prints this mark after the output of the block, and then 0 if all commands succeeded, or else 1.
    const end = `\0end ${(this.blocks += 1)} `
    const exited = this.shell.ended.then(code => assert.fail(`the shell ended with ${code}`))
    const printed = new Promise(resolve => {
      this.look = () => this.printed.includes(`${end}0\n`) || this.printed.includes(`${end}1\n`) ? resolve() : undefined
    })
    const ended = Promise.race([printed, exited])
    // The pasted commands must not read the lines that follow as their input.
    this.shell.stdin.write(`failed=0; set -o pipefail; trap 'failed=1' ERR\n. '${this.file}' </dev/null\nprintf '\\0end ${this.blocks} %s\\n' "$failed"\n`)
    await within(ended, `the end of\n${code}`, COMMAND_DEADLINE_MS)
    const [output, failed] = this.printed.split(end)
    assert.equal(failed, "0\n", `${code}\n${output}\n${this.shell.complaints}`)
    return output
  }

  close() {
    kill(this.shell)
  }
}

/** Starts a program in its own process group; `complaints` holds the end of its standard error. */
export function start(program, words, { cwd, env, stdio = ["ignore", "ignore", "pipe"] }) {
  const child = spawn(program, words, { cwd, env: { ...process.env, ...env }, detached: true, stdio })
  child.complaints = ""
  child.stderr.setEncoding("utf8").on("data", text => (child.complaints = (child.complaints + text).slice(-STDERR_CHARS_MAX)))
  child.ended = new Promise(resolve => child.on("close", resolve))
  child.on("close", () => started.delete(child))
  started.add(child)
  return child
}

/** Runs a program to its end, and returns its output; it must succeed. */
export async function run(program, words, options) {
  const child = start(program, words, { ...options, stdio: ["ignore", "pipe", "pipe"] })
  let printed = ""
  child.stdout.setEncoding("utf8").on("data", text => (printed += text))
  const status = await within(child.ended, `${program} ${words.join(" ")}`, COMMAND_DEADLINE_MS)
  assert.equal(status, 0, `${program} ${words.join(" ")}\n${printed}\n${child.complaints}`)
  return printed
}

/** Ends a program and all processes that it has started. */
export function kill(child, signal = "SIGKILL") {
  try {
    process.kill(-child.pid, signal)
  } catch {
    // It has ended already.
  }
}
