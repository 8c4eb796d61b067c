//! Tests of `unpack` against layers that mean harm, and against honest ones that look odd.
//!
//! Each case unpacks a hand-made tar beside a canary tree. Whatever the outcome, the canary must be unchanged and nothing
//! may appear outside the target. Owners, device nodes and `trusted.*` attributes need root.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use super::{Digest, Options, UnpackError, unpack};

/// A tar made byte by byte, so that nothing is put right on the way.
#[derive(Clone, Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn header(kind: EntryType, path: &[u8], link: &[u8], size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path);
        gnu.linkname[..link.len()].copy_from_slice(link);
        header
    }

    fn raw(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.raw(Self::header(EntryType::Regular, path.as_bytes(), b"", content.len() as u64), content.as_bytes())
    }

    fn directory(self, path: &str) -> Self {
        let mut header = Self::header(EntryType::Directory, path.as_bytes(), b"", 0);
        header.set_mode(0o755);
        self.raw(header, b"")
    }

    fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        self.raw(Self::header(kind, path.as_bytes(), target.as_bytes(), 0), b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    fn device(self, path: &str, kind: EntryType, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, path.as_bytes(), b"", 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(header, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (1..6).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length).unwrap();
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(Self::header(EntryType::XHeader, b"pax", b"", body.len() as u64), &body)
    }

    fn long_name(self, kind: EntryType, name: &[u8]) -> Self {
        self.raw(Self::header(kind, b"././@LongLink", b"", name.len() as u64), name)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory with a canary beside the unpack target.
struct Scene {
    directory: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let canary = directory.path().join("canary");
        fs::create_dir_all(canary.join("deep/er")).unwrap();
        fs::create_dir(directory.path().join("target")).unwrap();
        fs::write(canary.join("secret"), "alive").unwrap();
        fs::write(canary.join("deep/er/file"), "alive too").unwrap();
        symlink("secret", canary.join("link")).unwrap();
        let before = snapshot(directory.path());
        Self { directory, before }
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("target")
    }

    fn canary(&self) -> String {
        self.directory.path().join("canary").to_str().unwrap().to_owned()
    }

    fn unpack(&self, layer: &[u8], options: Options) -> Result<u64, UnpackError> {
        let result = unpack(layer, &self.target(), Digest::of(layer), options, &AtomicBool::new(false));
        assert_eq!(snapshot(self.directory.path()), self.before, "something outside the target changed");
        result
    }
}

/// Everything but the target: names, kinds, owners, modes, times, link targets, contents.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path == root.join("target") {
                continue;
            }
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                open.push(path.clone());
                String::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            let facts = (
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.nlink(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            );
            found.insert(path, format!("{facts:?} {content}"));
        }
    }
    found
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: unpacking sets owners, which needs root");
    }
    root
}

/// Runs each case and expects a refusal that says `expected`.
fn expect_refused(cases: Vec<(&str, Layer, &str)>) {
    for (name, layer, expected) in cases {
        let error = Scene::new().unpack(&layer.end(), Options::default()).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error} should say {expected:?}");
        assert!(!error.to_string().contains('\n'), "{name}");
    }
}

#[test]
fn names_that_leave_the_root_are_refused() {
    if !is_root() {
        return;
    }
    let f = |path: &str| Layer::default().file(path, "x");
    expect_refused(vec![
        ("parent", f("../canary/secret"), "\"..\""),
        ("parent after folder", f("a/../../canary/secret"), "\"..\""),
        ("parent that would stay inside", f("a/../b"), "\"..\""),
        ("absolute with parent", f("/../../canary/secret"), "\"..\""),
        ("parent at the end", f("a/.."), "\"..\""),
        ("only parents", f("../.."), "\"..\""),
        ("parent as folder", Layer::default().directory("../new/"), "\"..\""),
        ("parent by symlink entry", Layer::default().symlink("../new", "x"), "\"..\""),
        ("parent by hard link entry", Layer::default().file("a", "x").hard_link("../new", "a"), "\"..\""),
        (
            "parent in a GNU long name",
            Layer::default().long_name(EntryType::GNULongName, b"../canary/secret\0").file("short", "x"),
            "\"..\"",
        ),
        ("parent in a PAX path", Layer::default().pax(&[("path", b"../canary/secret")]).file("short", "x"), "\"..\""),
        ("NUL in a PAX path", Layer::default().pax(&[("path", b"ok\0/../x")]).file("short", "x"), "NUL"),
        (
            "NUL in a GNU long name",
            Layer::default().long_name(EntryType::GNULongName, b"a\0b\0").file("short", "x"),
            "NUL",
        ),
        ("NUL in a PAX link", Layer::default().pax(&[("linkpath", b"a\0b")]).symlink("l", "x"), "NUL"),
        ("root as a file", f("./"), "the root must be a directory"),
        ("root as a symlink", Layer::default().symlink(".", "/"), "the root must be a directory"),
    ]);
}

#[test]
fn links_do_not_lead_out_of_the_root() {
    if !is_root() {
        return;
    }
    let canary = Scene::new().canary();
    expect_refused(vec![
        ("hard link to parent", Layer::default().hard_link("l", "../canary/secret"), "target outside the layer"),
        (
            "hard link to an absolute path",
            Layer::default().hard_link("l", &format!("{canary}/secret")),
            "absolute target",
        ),
        ("hard link to passwd", Layer::default().hard_link("l", "/etc/passwd"), "absolute target"),
        (
            "hard link through a symlink",
            Layer::default().symlink("s", &canary).hard_link("l", "s/secret"),
            "does not have",
        ),
        (
            "hard link through a relative symlink",
            Layer::default().symlink("s", "../canary").hard_link("l", "s/secret"),
            "does not have",
        ),
        ("hard link to a folder", Layer::default().directory("d/").hard_link("l", "d"), "hard link to a directory"),
        ("hard link to the root", Layer::default().hard_link("l", "."), "hard link to the root"),
        ("hard link to nothing", Layer::default().hard_link("l", "missing"), "does not have"),
        ("hard link to a whiteout", Layer::default().file(".wh.x", "").hard_link("l", "x"), "whiteout"),
        (
            "hard link with content",
            Layer::default().file("a", "x").raw(Layer::header(EntryType::Link, b"l", b"a", 3), b"abc"),
            "not a file",
        ),
        (
            "file through an absolute symlink",
            Layer::default().symlink("s", &canary).file("s/secret", "dead"),
            "not a directory",
        ),
        (
            "file through a relative symlink",
            Layer::default().symlink("s", "../canary").file("s/secret", "dead"),
            "not a directory",
        ),
        (
            "file through a chain",
            Layer::default().symlink("a", "b").symlink("b", "../../canary").file("a/secret", "dead"),
            "not a directory",
        ),
        ("file through a loop", Layer::default().symlink("a", "b").symlink("b", "a").file("a/x", "dead"), "loop"),
        ("file through a file", Layer::default().file("a", "x").file("a/b", "x"), "not a directory"),
        (
            "file through a dangling symlink",
            Layer::default().symlink("a", "nowhere").file("a/b", "x"),
            "not a directory",
        ),
        (
            "file through /proc",
            Layer::default().symlink("p", "/proc/self/root").file("p/tmp/x", "dead"),
            "not a directory",
        ),
        (
            "whiteout through a symlink",
            Layer::default().symlink("s", &canary).file("s/.wh.secret", ""),
            "not a directory",
        ),
        (
            "opaque through a symlink",
            Layer::default().symlink("s", &canary).file("s/.wh..wh..opq", ""),
            "not a directory",
        ),
        ("symlink to nothing", Layer::default().symlink("s", ""), "symbolic link to nothing"),
    ]);
}

#[test]
fn confined_links_resolve_inside() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let layer = Layer::default()
        .symlink("out", "../../../../../../../../tmp")
        .symlink("abs", "/inside")
        .directory("inside/")
        .directory("tmp/")
        .file("abs/one", "1")
        .file("out/two", "2")
        .hard_link("three", "abs/one")
        .symlink("secret", &format!("{}/secret", scene.canary()))
        .file("secret", "replaced, not followed")
        .symlink("d", &scene.canary())
        .directory("d/")
        .file("d/secret", "in the layer")
        .hard_link("three", "three");
    scene.unpack(&layer.end(), Options::default()).unwrap();
    let read = |path: &str| fs::read_to_string(scene.target().join(path)).unwrap();
    assert_eq!((read("inside/one"), read("tmp/two"), read("three")), ("1".into(), "2".into(), "1".into()));
    assert_eq!((read("secret"), read("d/secret")), ("replaced, not followed".into(), "in the layer".into()));
    assert_eq!(fs::metadata(scene.target().join("three")).unwrap().nlink(), 2);
    assert_eq!(
        fs::read_link(scene.target().join("abs")).unwrap(),
        Path::new("/inside"),
        "absolute targets are stored as they are"
    );
}

#[test]
fn chmod_and_times_do_not_follow_links_out() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    // A folder that becomes a link to the canary before its mode and times are set (RUSTSEC-2026-0067 in spirit).
    let mut open = Layer::header(EntryType::Directory, b"d/", b"", 0);
    open.set_mode(0o777);
    let layer = Layer::default()
        .raw(open, b"")
        .symlink("d", &scene.canary())
        .symlink("e", &format!("{}/deep", scene.canary()))
        .symlink("e", "../canary/deep");
    scene.unpack(&layer.end(), Options::default()).unwrap();
    assert!(fs::symlink_metadata(scene.target().join("d")).unwrap().is_symlink());
}

#[test]
fn device_nodes_are_refused_unless_asked_for() {
    if !is_root() {
        return;
    }
    expect_refused(vec![
        ("character device", Layer::default().device("dev/mem", EntryType::Char, 1, 1), "device node"),
        ("block device", Layer::default().device("dev/sda", EntryType::Block, 8, 0), "device node"),
    ]);
    let scene = Scene::new();
    let privileged = Options { devices: true };
    scene.unpack(&Layer::default().device("dev/null", EntryType::Char, 1, 3).end(), privileged).unwrap();
    assert!(fs::metadata(scene.target().join("dev/null")).unwrap().file_type().is_char_device());
    let error =
        Scene::new().unpack(&Layer::default().device("x", EntryType::Char, 0, 0).end(), privileged).unwrap_err();
    assert!(error.to_string().contains("whiteout made by hand"), "{error}");
}

#[test]
fn attributes_that_steer_overlayfs_are_refused_and_foreign_labels_dropped() {
    if !is_root() {
        return;
    }
    let with =
        |key: &str, value: &[u8]| Layer::default().pax(&[(&format!("SCHILY.xattr.{key}"), value)]).file("f", "x");
    expect_refused(vec![
        ("redirect", with("trusted.overlay.redirect", b"/etc"), "overlayfs"),
        ("opaque", with("trusted.overlay.opaque", b"y"), "overlayfs"),
        ("user redirect", with("user.overlay.redirect", b"/etc"), "overlayfs"),
        ("capability of the wrong shape", with("security.capability", b"abc"), "cannot unpack"),
    ]);
    let scene = Scene::new();
    // cap_net_bind_service=ep, revision 2 (capabilities(7)); the effective bit of the mask is a newline on purpose.
    let capability = [1, 0, 0, 2, 0x0a, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"hello"),
        ("SCHILY.xattr.security.selinux", b"label"),
        ("SCHILY.xattr.trusted.other", b"x"),
    ];
    let mut header = Layer::header(EntryType::Regular, b"bin/tool", b"", 2);
    header.set_mode(0o4755);
    header.set_uid(1234);
    header.set_gid(5678);
    scene.unpack(&Layer::default().pax(&records).raw(header, b"ok").end(), Options::default()).unwrap();
    let path = scene.target().join("bin/tool");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid(), metadata.mtime()),
        (0o4755, 1234, 5678, 1_000_000_000)
    );
    let attribute = |name: &str| {
        let mut value = [0u8; 64];
        rustix::fs::getxattr(&path, name, &mut value).map(|length| value[..length].to_vec()).ok()
    };
    assert_eq!(attribute("security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute("user.note").as_deref(), Some(&b"hello"[..]));
    assert_eq!(attribute("trusted.other"), None);
}

#[test]
fn whiteouts_become_overlayfs_ones_and_hide_only_lower_layers() {
    if !is_root() {
        return;
    }
    let refused = |path: &str| Layer::default().file(path, "");
    expect_refused(vec![
        ("of the parent", refused("a/.wh..."), "whiteout of no name"),
        ("of itself", refused("a/.wh.."), "whiteout of no name"),
        ("of nothing", refused("a/.wh."), "whiteout of no name"),
        ("beyond the root", refused("../.wh.canary"), "\"..\""),
    ]);
    let scene = Scene::new();
    let layer = Layer::default()
        .file("gone/.wh.file", "")
        .file("both/kept", "here")
        .file("both/.wh.kept", "")
        .file("sub/dir/x", "x")
        .file("sub/.wh.dir", "")
        .file("first/.wh.dir", "")
        .directory("first/dir/")
        .file("first/.wh.implied", "")
        .file("first/implied/file", "x")
        .file("first/.wh.file", "")
        .file("first/file", "back")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "");
    scene.unpack(&layer.end(), Options::default()).unwrap();
    let at = |path: &str| scene.target().join(path);
    let opaque = |path: &str| {
        let mut value = [0u8; 1];
        rustix::fs::getxattr(at(path), "trusted.overlay.opaque", &mut value).is_ok() && value == *b"y"
    };
    let gone = fs::symlink_metadata(at("gone/file")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(fs::read_to_string(at("both/kept")).unwrap(), "here");
    assert_eq!(fs::read_to_string(at("first/file")).unwrap(), "back");
    assert!(opaque("sub/dir") && opaque("first/dir") && opaque("first/implied") && opaque("opaque"));
    assert!(!opaque("gone") && !opaque("first"));
    assert!(!fs::exists(at(".wh..wh.plnk")).unwrap());
}

#[test]
fn odd_but_honest_layers_are_unpacked() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(255));
    let layer = Layer::default()
        .directory("./")
        .file("/absolute/name", "a")
        .file("./dot//slashes/./x", "b")
        .pax(&[("path", "ünïcode/名前".as_bytes()), ("mtime", b"1234567890.5")])
        .file("short", "c")
        .raw(Layer::header(EntryType::Regular, b"latin-\xe9", b"", 1), b"d")
        .long_name(EntryType::GNULongName, &[long.as_bytes(), b"\0"].concat())
        .file("short", "e")
        .file("UPPER", "f")
        .file("upper", "g")
        .file("twice", "old and longer")
        .file("twice", "new")
        .file("tree/leaf", "x")
        .file("tree", "now a file")
        .raw(Layer::header(EntryType::XGlobalHeader, b"pax_global_header", b"", 9), b"9 a=bcde\n")
        .raw(Layer::header(EntryType::Fifo, b"run/pipe", b"", 0), b"")
        .raw(Layer::header(EntryType::Continuous, b"old", b"", 1), b"h");
    scene.unpack(&layer.end(), Options::default()).unwrap();
    let read = |path: &[u8]| fs::read_to_string(scene.target().join(OsStr::from_bytes(path))).unwrap();
    for (path, content) in [
        ("absolute/name".as_bytes(), "a"),
        (b"dot/slashes/x", "b"),
        ("ünïcode/名前".as_bytes(), "c"),
        (b"latin-\xe9", "d"),
        (long.as_bytes(), "e"),
        (b"UPPER", "f"),
        (b"upper", "g"),
        (b"twice", "new"),
        (b"tree", "now a file"),
        (b"old", "h"),
    ] {
        assert_eq!(read(path), content);
    }
    let unicode = fs::metadata(scene.target().join("ünïcode/名前")).unwrap();
    assert_eq!((unicode.mtime(), unicode.mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(
        fs::metadata(scene.target()).unwrap().mtime(),
        1_000_000_000,
        "folder times are set after their content"
    );
    assert!(fs::metadata(scene.target().join("run/pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn malformed_archives_are_refused() {
    if !is_root() {
        return;
    }
    let file = |size| Layer::header(EntryType::Regular, b"f", b"", size);
    let mut owner = file(0);
    owner.set_uid(u64::from(u32::MAX));
    let mut huge = file(0);
    huge.set_size(u64::MAX);
    expect_refused(vec![
        ("PAX size larger", Layer::default().pax(&[("size", b"1024")]).raw(file(1), b"x"), "two different sizes"),
        (
            "PAX size smaller",
            Layer::default().pax(&[("size", b"0")]).raw(file(600), &[b'x'; 600]),
            "two different sizes",
        ),
        ("PAX size no number", Layer::default().pax(&[("size", b"-1")]).raw(file(1), b"x"), "does not parse"),
        ("GNU sparse", Layer::default().raw(Layer::header(EntryType::GNUSparse, b"s", b"", 0), b""), "sparse"),
        ("PAX sparse", Layer::default().pax(&[("GNU.sparse.realsize", b"99999999999")]).raw(file(1), b"x"), "sparse"),
        ("unknown type", Layer::default().raw(Layer::header(EntryType::new(b'Z'), b"z", b"", 0), b""), "unknown type"),
        ("no owner", Layer::default().raw(owner, b""), "owner out of range"),
        ("PAX owner -1", Layer::default().pax(&[("uid", b"4294967295")]).file("f", "x"), "owner out of range"),
        (
            "folder with content",
            Layer::default().raw(Layer::header(EntryType::Directory, b"d/", b"", 5), b"abcde"),
            "not a file",
        ),
        ("huge size", Layer::default().raw(huge, b""), "size out of range"),
        ("size beyond the end", Layer(Layer::default().raw(file(1 << 40), b"x").0), "ends within an entry"),
        (
            "huge extension",
            Layer::default().raw(Layer::header(EntryType::XHeader, b"p", b"", 2 << 20), &vec![b'x'; 2 << 20]),
            "more than 1 MiB",
        ),
        (
            "huge long name",
            Layer::default().raw(Layer::header(EntryType::GNULongName, b"p", b"", 10 << 30), b"x"),
            "more than 1 MiB",
        ),
        (
            "long path",
            Layer::default().long_name(EntryType::GNULongName, "a/".repeat(2100).as_bytes()).file("f", "x"),
            "longer than 4095",
        ),
        (
            "long component",
            Layer::default().long_name(EntryType::GNULongName, "a".repeat(256).as_bytes()).file("f", "x"),
            "255 bytes",
        ),
        (
            "deep path",
            Layer::default().long_name(EntryType::GNULongName, "a/".repeat(300).as_bytes()).file("f", "x"),
            "256 components",
        ),
        ("extension at the end", Layer::default().pax(&[("path", b"x")]), "describes no entry"),
    ]);
    for (name, bytes, expected) in [
        ("no tar", b"this is not a tar archive".repeat(40), "wrong header checksum"),
        ("short header", vec![b'x'; 100], "ends within a header"),
        ("broken gzip", [&[0x1f, 0x8b, 8, 0][..], &[0; 40]].concat(), "malformed"),
        ("broken zstd", [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0xff; 40]].concat(), "malformed"),
        ("xz", b"\xfd7zXZ\0".to_vec(), "xz"),
    ] {
        let error = Scene::new().unpack(&bytes, Options::default()).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn bombs_stop_early_and_wrong_content_is_noticed() {
    if !is_root() {
        return;
    }
    const ZEROS: u64 = 128 << 20;
    let scene = Scene::new();
    let mut bomb = GzEncoder::new(Vec::new(), Compression::new(6));
    let mut header = Layer::header(EntryType::Regular, b"zeros", b"", ZEROS);
    header.set_cksum();
    bomb.write_all(header.as_bytes()).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), ZEROS + 1024), &mut bomb).unwrap();
    let error = scene.unpack(&bomb.finish().unwrap(), Options::default()).unwrap_err();
    assert!(matches!(&error, UnpackError::Limit(text) if text.contains("200 times")), "{error}");
    assert!(fs::metadata(scene.target().join("zeros")).unwrap().len() < 80 << 20);

    let layer = Layer::default().file("f", "x").end();
    let target = scene.target();
    let error =
        unpack(&layer[..], &target, Digest::of(b"other"), Options::default(), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, UnpackError::WrongDigest { .. }));
    let error =
        unpack(&layer[..], &target, Digest::of(&layer), Options::default(), &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, UnpackError::Cancelled));
}
