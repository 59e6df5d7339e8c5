use std::os::unix::fs::PermissionsExt;

use super::*;

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

#[test]
fn a_file_is_private_replaced_whole_and_leaves_no_draft() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.key");
    assert!(read(&path).unwrap().is_none());
    for text in ["one", "two"] {
        write(&path, &secret(text)).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().reveal(), text.as_bytes());
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_open_to_others_is_refused_with_its_path_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.key");
    write(&path, &secret("key")).unwrap();
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("(mode {mode:04o})")), "{message}");
        assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
    }
}

#[test]
fn a_draft_left_by_a_crash_does_not_stop_the_next_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.key");
    fs::write(folder.path().join(".host.key.new"), "half").unwrap();
    write(&path, &secret("whole")).unwrap();
    assert_eq!(read(&path).unwrap().unwrap().reveal(), b"whole");
}

#[test]
fn a_folder_and_a_huge_file_are_no_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.key");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(read(&path), Err(FileError::Strange { .. })));
    let path = folder.path().join("wrap.key");
    write(&path, &Secret::new(vec![0; 65 << 10])).unwrap();
    assert!(matches!(read(&path), Err(FileError::Strange { .. })));
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none").join("host.key");
    let message = write(&path, &secret("key")).unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot write {}", path.display())), "{message}");
}
