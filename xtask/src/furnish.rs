//! What a guest needs beside busybox to run a Python program: the interpreter at hand with its library, other programs,
//! and the shared libraries of all of them, each at the place that it has here.
//!
//! The library goes in compiled and without its sources: times of files are lost on the way, and by these a compiled file
//! is judged, so that each start would compile everything again, slowly where the guest is emulated.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::exec::{Failure, command, output, which};

/// A Python program and what it starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Furniture<'a> {
    /// The program's folder, which the guest has as [`FOLDER`].
    pub(crate) folder: &'a Path,
    /// Programs in `PATH` that it starts.
    pub(crate) programs: &'a [&'a str],
}

/// Where the guest has the program's folder.
pub(crate) const FOLDER: &str = "/example";

/// Parts of Python's library that no program of ours uses, and that are large.
const UNUSED: &[&str] = &[
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
    "unittest",
];

/// Puts it all into a guest's root.
pub(crate) fn furnish(archive: &mut Archive, furniture: &Furniture<'_>) -> Result<(), Failure> {
    let mut packer = Packer { archive, folders: BTreeSet::new() };
    let ask = "import os, sys, sysconfig; \
               print(os.path.realpath(sys.executable), sysconfig.get_path('stdlib'), sys.implementation.cache_tag, sep='\\n')";
    let told = output(command("python3").args(["-I", "-c", ask]))?;
    let [python, library, tag] = told.lines().collect::<Vec<_>>()[..] else {
        return Err(Failure(format!("python3 does not tell what it is: {told:?}")));
    };
    let mut binaries = vec![PathBuf::from(python)];
    packer.file(Path::new(python))?;
    packer.link("bin/python3", python);
    for program in furniture.programs {
        let found = which(program).ok_or_else(|| Failure(format!("{program} is not here")))?;
        let real = found.canonicalize().map_err(Failure::on("find", &found))?;
        packer.file_as(&Path::new("bin").join(program), &real)?;
        binaries.push(real);
    }
    packer.library(Path::new(library), tag, &mut binaries)?;
    for library in libraries(&binaries)? {
        packer.file(&library)?;
    }
    for file in entries(furniture.folder)? {
        if file.is_file() {
            packer.file_as(&Path::new(FOLDER).join(file.file_name().unwrap_or_default()), &file)?;
        }
    }
    Ok(())
}

struct Packer<'a> {
    archive: &'a mut Archive,
    folders: BTreeSet<PathBuf>,
}

impl Packer<'_> {
    /// A file at its own place.
    fn file(&mut self, file: &Path) -> Result<(), Failure> {
        self.file_as(file, file)
    }

    /// A file at another place.
    fn file_as(&mut self, place: &Path, file: &Path) -> Result<(), Failure> {
        let place = inside(place);
        self.folders_above(&place);
        self.archive.program_from(&place.to_string_lossy(), file)
    }

    fn link(&mut self, place: &str, target: &str) {
        self.folders_above(Path::new(place));
        self.archive.symlink(place, target);
    }

    fn folders_above(&mut self, place: &Path) {
        let mut above: Vec<&Path> = place.ancestors().skip(1).filter(|folder| *folder != Path::new("")).collect();
        above.reverse();
        for folder in above {
            if self.folders.insert(folder.to_owned()) {
                self.archive.folder(&folder.to_string_lossy());
            }
        }
    }

    /// A folder of Python's library. Its shared objects are noted.
    fn library(&mut self, folder: &Path, tag: &str, binaries: &mut Vec<PathBuf>) -> Result<(), Failure> {
        for entry in entries(folder)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let extension = entry.extension().unwrap_or_default();
            if entry.is_dir() {
                if !UNUSED.contains(&name.as_str()) && !name.starts_with("config-") {
                    self.library(&entry, tag, binaries)?;
                }
            } else if extension == "so" {
                self.file(&entry)?;
                binaries.push(entry);
            } else if extension == "py" {
                let stem = entry.file_stem().unwrap_or_default().to_string_lossy();
                let compiled = folder.join("__pycache__").join(format!("{stem}.{tag}.pyc"));
                if compiled.exists() {
                    self.file_as(&entry.with_extension("pyc"), &compiled)?;
                } else {
                    self.file(&entry)?;
                }
            }
        }
        Ok(())
    }
}

/// A place as the guest's root has it, where `/usr` is the root itself.
fn inside(place: &Path) -> PathBuf {
    let place = place.strip_prefix("/").unwrap_or(place);
    place.strip_prefix("usr").unwrap_or(place).to_owned()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let found = std::fs::read_dir(folder).map_err(Failure::on("list", folder))?;
    let mut found: Vec<PathBuf> = found.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    found.sort();
    Ok(found)
}

/// The shared libraries of these, and of those in turn, as the loader finds them.
fn libraries(binaries: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Failure> {
    let told = output(command("ldd").args(binaries))?;
    Ok(told.lines().filter_map(library_of).collect())
}

/// `libm.so.6 => /lib/…/libm.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library_of(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let (path, address) = path.rsplit_once(' ')?;
    (path.starts_with('/') && address.starts_with("(0x")).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_prints() {
        let read = |line| library_of(line).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(read("\tlinux-vdso.so.1 (0x00007fab72885000)"), None);
        assert_eq!(
            read("\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007fab)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libm.so.6")
        );
        assert_eq!(read("\t/lib64/ld-linux-x86-64.so.2 (0x00007fab)").as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(read("/usr/bin/redis-server:"), None);
        assert_eq!(read("\tstatically linked"), None);
    }

    #[test]
    fn what_is_below_usr_is_at_the_root() {
        assert_eq!(inside(Path::new("/usr/lib/python3")), Path::new("lib/python3"));
        assert_eq!(inside(Path::new("/example/run.py")), Path::new("example/run.py"));
    }
}
