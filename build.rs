//! Lists the files of `static/console`, which the program has built in: the folder is the only list of
//! them.

use std::{
    env,
    error::Error,
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("static/console");
    // Cargo watches a folder with everything below it.
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    find(&root, &mut files)?;
    files.sort();
    let mut list = String::from("[\n");
    for file in files {
        let path = file.strip_prefix(&root)?.to_str().ok_or("a path is not UTF-8")?;
        writeln!(list, "    ({path:?}, include_bytes!({:?}) as &[u8]),", file.display())?;
    }
    list.push_str("]\n");
    Ok(fs::write(Path::new(&env::var("OUT_DIR")?).join("console_files.rs"), list)?)
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
