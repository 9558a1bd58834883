//! The memory that the ranks of a host share for their flight recorders.

use crate::output::say;
use engine::flight::SharedRings;
use engine::mpi::Comm;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const FOLDER: &str = "/dev/shm";

/// The slots of this rank's host, and the index of its own. Where there is no memory to share, the slot of this rank
/// alone, with a note. Collective.
pub fn share(comm: &Comm) -> (SharedRings, usize) {
    let node = comm.split_node();
    let made = if node.rank() == 0 { create(node.size()) } else { Ok(None) };
    // An empty path says that there is none.
    let path = match &made {
        Ok(Some((path, _))) => path.clone(),
        _ => PathBuf::new(),
    };
    let path = node.broadcast_bytes(path.into_os_string().into_encoded_bytes());
    let path = PathBuf::from(String::from_utf8_lossy(&path).into_owned());
    let mapped = match made {
        Ok(Some((_, rings))) => Ok(rings),
        Ok(None) if path.as_os_str().is_empty() => Err("the first rank of this host has none".to_string()),
        Ok(None) => SharedRings::open(&path, node.size()).map_err(|e| e.to_string()),
        Err(why) => Err(why),
    };
    let all = node.all_gather_bytes(mapped.as_ref().err().map_or("", String::as_str).as_bytes());
    if node.rank() == 0 && !path.as_os_str().is_empty() {
        // All ranks have mapped it. A name that cannot be removed is gone at the next reboot.
        let _ = std::fs::remove_file(&path);
    }
    match (mapped, all.iter().find(|why| !why.is_empty())) {
        (Ok(rings), None) => (rings, node.rank()),
        (_, why) => {
            if node.rank() == 0 {
                let why = why.map_or(String::new(), |why| String::from_utf8_lossy(why).into_owned());
                say!("note: {FOLDER}: {why}; a rank of {} that dies or stops cannot be named", engine::mpi::host());
            }
            (SharedRings::alone().expect("a process has memory for two pages"), 0)
        }
    }
}

fn create(slots: usize) -> Result<Option<(PathBuf, SharedRings)>, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let path = Path::new(FOLDER).join(format!("swallow-engine.{}.{now}", std::process::id()));
    let rings = SharedRings::create(&path, slots).map_err(|e| e.to_string())?;
    Ok(Some((path, rings)))
}
