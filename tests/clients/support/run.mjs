// Runs the test files that are named.
//
//   node support/run.mjs <file>... --alone <file>...
//
// The files before `--alone` start in their order, and run two at a time for each core and one more, because most of
// them wait for timers of the clients more than they compute. The files after it measure times, so they run last and
// one at a time.

import os from "node:os"
import { run } from "node:test"
import { spec } from "node:test/reporters"

const words = process.argv.slice(2)
const border = words.indexOf("--alone")
const [together, alone] = border < 0 ? [words, []] : [words.slice(0, border), words.slice(border + 1)]

await all(together, 2 * os.availableParallelism() + 1)
await all(alone, 1)

async function all(files, concurrency) {
  if (files.length === 0) return
  const tests = run({ files, concurrency }).on("test:fail", () => (process.exitCode = 1))
  const shown = tests.compose(new spec())
  for await (const text of shown) process.stdout.write(text)
}
