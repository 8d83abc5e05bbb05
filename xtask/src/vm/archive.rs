//! What a kernel unpacks into its memory before anything else: a cpio archive of the new kind (`initramfs` in its documents).

/// An archive while it is written.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    /// A folder, and those above it.
    pub(super) fn folder(&mut self, name: &str) {
        if name.is_empty() || self.folders.iter().any(|known| known == name) {
            return;
        }
        self.folder(name.rsplit_once('/').map_or("", |(above, _)| above));
        self.folders.push(name.to_owned());
        self.entry(name, FOLDER, &[]);
    }

    /// A file that can be run.
    pub(super) fn program(&mut self, name: &str, content: &[u8]) {
        self.folder(name.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(name, PROGRAM, content);
    }

    /// All of it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, user, group, links, time, size, four numbers of devices, length of the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_only_once() {
        let mut archive = Archive::default();
        archive.program("lib64/a/b.so", b"xyz");
        archive.program("lib64/a/c.so", b"");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<_> = ["lib64\0", "lib64/a\0", "lib64/a/b.so\0", "lib64/a/c.so\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).expect("is there"))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 5);
        assert_eq!(bytes.len() % 4, 0);
    }
}
