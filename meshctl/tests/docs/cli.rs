//! `docs/cli.md` is what `--help` of every command says, which is what the code defines. The part about meshd is made by its
//! own tests.

use crate::commands::meshctl;
use crate::{help, keep};

#[test]
fn the_reference_of_meshctl_is_what_the_code_says() {
    keep("docs/cli.md", "meshctl", &help::reference(&meshctl(), "meshctl"));
}
