//! A mail server: the plainest protocol in which the server speaks first.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

/// Takes one mail as RFC 5321 has it, and forgets it.
pub(crate) fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    stream.write_all(b"220 lab ready\r\n")?;
    let mut in_mail = false;
    while let Some(line) = lines.next().transpose()? {
        let answer = match (in_mail, line.split(' ').next().unwrap_or_default()) {
            (true, ".") => {
                in_mail = false;
                "250 taken"
            }
            (true, _) => continue,
            (false, "DATA") => {
                in_mail = true;
                "354 go on"
            }
            (false, "QUIT") => "221 bye",
            (false, _) => "250 good",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes())?;
        if answer.starts_with("221") {
            return Ok(());
        }
    }
    Ok(())
}
